"""The pullback metric of one weight, and the sums over images that it is made of.

Few images tell few correlations: a layer behind a global pooling sees one vector of inputs for each, often fewer than
it has columns, and what they have in common by chance looks like directions in which errors cost nothing. So
covariances between columns are shrunk by the share of them that is likely to be chance (Ledoit and Wolf, "A
well-conditioned estimator for large-dimensional covariance matrices", 2004, with the diagonal as target as in Schaefer
and Strimmer, "A shrinkage approach to large-scale covariance matrix estimation", 2005). That share is measured: images
are added up in two halves, and what these differ in is chance, however positions of one image depend on each other.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import safetensors.torch
import torch
from torch import Tensor

from ..weights.views import WeightView

MAX_COLUMNS = 6144
"""Most columns of a block of the metric: correlations between columns of different blocks are left out."""

SHRINKAGE = 1.0
"""Share of the chance in covariances that is taken out of them: 0 takes what few images tell for the truth."""

ROWS = 512
"""Rows of a block whose covariances are worked out at a time, so that they take little memory."""

FARTHEST = 40
"""Largest binary exponent, up or down, of inputs whose squares float32 holds with room for sums; others are scaled."""


@dataclass(frozen=True, eq=False)
class Metric:
    """The pullback metric of one weight matrix ``(out, in)``.

    Attributes:
        blocks: ``A`` as diagonal blocks over consecutive columns, each ``(groups, b, b)`` float32, ``b`` summing up to
            ``in``; rows ``k * out / groups`` to ``(k + 1) * out / groups`` have the ``A`` of group ``k``.
        output_weights: ``g`` ``(out,)`` float64, which also has the power of two that float32 could not hold in ``A``.
        source: ``inputs``, or ``gradients`` where the layer's inputs could not be seen.
    """

    blocks: tuple[Tensor, ...]
    output_weights: Tensor
    source: str

    @property
    def groups(self) -> int:
        """Number of groups of rows with a metric of their own."""
        return self.blocks[0].shape[0]

    def dense(self) -> Tensor:
        """One ``A`` for all rows, ``(in, in)``: the mean over the groups."""
        return torch.block_diag(*(block.mean(0) for block in self.blocks))

    def to_bytes(self) -> bytes:
        """For a journal."""
        return _pack(self.blocks, self.source, output_weights=self.output_weights)

    @classmethod
    def from_bytes(cls, data: bytes) -> Metric:
        """Inverse of :meth:`to_bytes`."""
        blocks, source, others = _unpack(data)
        return cls(tuple(blocks), others['output_weights'], source)


@dataclass
class MetricSums:
    """Sums over images: of weighted second moments, of squared gradients of each row, and of the weights.

    Attributes:
        blocks: second moments ``(groups, b, b)`` float32 of the metric's blocks, in ``unit``.
        firsts: first moments ``(groups, in)`` float32, in ``unit``; zeros where they are not known.
        rows: squared gradients ``(out,)`` float64.
        energy: sum of the weights, in ``unit``.
        source: as of the metric.
        unit: binary exponents by which inputs and weights are scaled, so that float32 holds moments of any network: a
            power of two changes no bit. The first ones that are not all zero decide.
    """

    blocks: list[Tensor]
    firsts: Tensor
    rows: Tensor
    energy: float
    source: str
    unit: tuple[int, int] | None = None

    @classmethod
    def empty(cls, view: WeightView, groups: int, source: str = 'inputs') -> MetricSums:
        rows, columns = view.matrix_shape
        widths = [part.stop - part.start for part in parts(columns)]
        blocks = [torch.zeros(groups, width, width) for width in widths]
        return cls(blocks, torch.zeros(groups, columns), torch.zeros(rows, dtype=torch.float64), 0.0, source)

    def weigh(self, inputs: Tensor, energy: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs ``(..., in)``, and their weights float64, which are added up, in the unit of the sums."""
        if self.unit is None and energy.any() and inputs.any():
            size, largest = (math.frexp(float(values.abs().max()))[1] for values in (inputs, energy))
            self.unit = (-size if abs(size) > FARTHEST else 0, -largest)
        of_inputs, of_energy = self.unit or (0, 0)
        if of_inputs:
            inputs = (inputs.double() * 2.0**of_inputs).to(inputs)
        energy = energy * 2.0**of_energy
        self.energy += float(energy.sum())
        return inputs, energy

    def add(self, other: MetricSums) -> MetricSums:
        self.unit = self.unit or other.unit
        of_inputs, of_energy = self._exponents(other)
        for mine, its in zip(self.blocks, other.blocks):
            mine += its * 2.0 ** (2 * of_inputs + of_energy)
        self.firsts += other.firsts * 2.0 ** (of_inputs + of_energy)
        self.rows += other.rows
        self.energy += other.energy * 2.0**of_energy
        return self

    def _exponents(self, other: MetricSums) -> list[int]:
        """What leads from the unit of another one to that of this one."""
        pairs = zip(self.unit or (0, 0), other.unit or self.unit or (0, 0))
        return [mine - its for mine, its in pairs]

    def to_bytes(self) -> bytes:
        """For another process."""
        unit = (math.nan, math.nan) if self.unit is None else self.unit
        energy = torch.tensor([self.energy, *unit], dtype=torch.float64)
        return _pack(self.blocks, self.source, firsts=self.firsts, rows=self.rows, energy=energy)

    @classmethod
    def from_bytes(cls, data: bytes) -> MetricSums:
        blocks, source, others = _unpack(data)
        energy, *unit = others['energy'].tolist()
        whole = None if math.isnan(unit[0]) else (int(unit[0]), int(unit[1]))
        return cls(blocks, others['firsts'], others['rows'], energy, source, whole)

    def chance(self, other: MetricSums) -> list[Tensor]:
        """How far the covariances of both together are likely to be off, told by what each of them finds.

        Args:
            other: of other images.

        Returns:
            Of each block the squared error ``(groups,)`` float64, summed over all pairs of different columns.
        """
        of_inputs, of_energy = self._exponents(other)
        its_share = 1 / (1 + self.energy / (other.energy * 2.0**of_energy))
        found = []
        for mine, its in zip(self._moments(), other._moments(2.0**of_inputs)):
            pairs = zip(_covariances(*mine), _covariances(*its))
            squares = (_squares(covariances - others) for (_, covariances), (_, others) in pairs)
            found.append(functools.reduce(torch.add, squares) * its_share * (1 - its_share))
        return found

    def _moments(self, unit: float = 1.0) -> Iterator[tuple[Tensor, Tensor, float]]:
        """Of each block the sums of second moments, the first moments, and what leads from these sums to moments."""
        for block, part in zip(self.blocks, parts(self.firsts.shape[1])):
            yield block, self.firsts[:, part] * (unit / self.energy), unit**2 / self.energy

    def metric(self, images: int, chance: Sequence[Tensor] = ()) -> Metric:
        """The mean over images, whose covariances are shrunk.

        Args:
            images: how many.
            chance: see :meth:`chance`; none: they stay as they are.
        """
        firsts = [first for _, first, _ in self._moments()]
        blocks = tuple(block.div_(self.energy) for block in self.blocks)
        for block, first, error in zip(blocks, firsts, chance):
            _shrink(block, first, error)
        traces = functools.reduce(torch.add, (block.diagonal(dim1=1, dim2=2).double().sum(1) for block in blocks))
        per_group = self.rows.reshape(len(traces), -1) / images
        output_weights = per_group / traces.clamp_min(1e-300)[:, None]
        return Metric(blocks, output_weights.reshape(-1), self.source)


def _covariances(second: Tensor, first: Tensor, scale: float = 1.0) -> Iterator[tuple[slice, Tensor]]:
    """Covariances ``(groups, rows, b)`` of some rows after the other, 0 on the diagonal.

    Args:
        second: moments ``(groups, b, b)``.
        first: moments ``(groups, b)``.
        scale: of the second moments.
    """
    for start in range(0, second.shape[1], ROWS):
        rows = slice(start, start + ROWS)
        covariances = second[:, rows] * scale - first[:, rows, None] * first[:, None]
        covariances.diagonal(start, 1, 2).zero_()
        yield rows, covariances


def _squares(covariances: Tensor) -> Tensor:
    return covariances.square().sum((1, 2), dtype=torch.float64)


def _shrink(second: Tensor, first: Tensor, chance: Tensor) -> None:
    """Take from moments, in place, the share of their covariances that is chance."""
    squares = functools.reduce(torch.add, (_squares(covariances) for _, covariances in _covariances(second, first)))
    share = (SHRINKAGE * chance / squares.clamp_min(torch.finfo(squares.dtype).tiny)).clamp_max(1).to(second)
    for rows, covariances in _covariances(second, first):
        second[:, rows] -= share[:, None, None] * covariances


def _pack(blocks: Sequence[Tensor], source: str, **others: Tensor) -> bytes:
    named = {f'block {number}': block for number, block in enumerate(blocks)}
    return safetensors.torch.save({**named, **others, f'source {source}': torch.zeros(0)})


def _unpack(data: bytes) -> tuple[list[Tensor], str, dict[str, Tensor]]:
    others = safetensors.torch.load(data)
    (source,) = (name for name in others if name.startswith('source '))
    blocks = [others.pop(f'block {number}') for number in range(sum(name.startswith('block ') for name in others))]
    return blocks, source.removeprefix('source '), others


def parts(columns: int) -> list[slice]:
    """Consecutive columns of each block of the metric, as equal as can be, at most ``MAX_COLUMNS``.

    >>> parts(3)
    [slice(0, 3, None)]
    """
    count = -(-columns // MAX_COLUMNS)
    width = -(-columns // count)
    return [slice(start, min(start + width, columns)) for start in range(0, columns, width)]
