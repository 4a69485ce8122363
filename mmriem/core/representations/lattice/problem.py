"""Lattice points near a weight matrix in the pullback metric: successive cancellation over columns."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ...coding.exact import powers_of_two
from ...errors import RiemError
from ..checks import MetricBlocks, checked_blocks
from .codec import Lattice
from .exponents import MAX_SYMBOL, OCTAVE
from .trellis_search import Columns, prices, search

DAMPING = 0.01
"""What is added to the diagonal of a metric, relative to its mean: the procedural images are not the real ones."""
COLUMN_POWER = 0.25
"""Power of the pivots ``R_jj`` that column steps are divided by: 1 is best at high rates for a metric that is exact."""
COLUMN_ROWS = 128
"""Least rows of a matrix with a step for each column: for fewer it would cost more bits than it saves."""
ROW_POWER = 0.25
"""Power of the square roots of the output weights that row steps are divided by."""
DEAD_ZONE = 0.04
"""What a fraction must have above a half to be rounded up: zeros and small numbers cost fewer bits."""
SMALLEST_STEP, LARGEST_STEP = 2.0**-126, 2.0**120
"""Steps of a lattice, such that float32 holds those of rows and columns too. Weights that are denormal become zeros."""
FARTHEST = 100
"""Largest binary exponent, up or down, of output weights that float32 holds; others are scaled."""
LARGEST_CODE = 1 << 10
"""Integers of constant weights where the step is their spread, which is taken as that share of their magnitude."""
BLOCK = 128
"""Columns that are rounded before their errors are passed on to all later columns, in one product."""


@dataclass(frozen=True, eq=False)
class Problem:
    """A weight matrix with its factored metric, ready to be rounded at any step.

    Attributes:
        weight: ``(groups, in, out / groups)`` float32: columns are contiguous.
        factors: for each block of columns the unit upper triangular ``R_ij / R_jj``, ``(groups, b, b)`` float32.
        pivots: ``R_jj``, ``(groups, in)`` float32.
        output_weights: ``g / unit``, ``(groups, out / groups)`` float32.
        kernel_size: neighbouring columns that belong to one input channel.
        trellis: integers are sought along the paths of a trellis (:mod:`.trellis_search`), on a grid of half the step.
    """

    weight: Tensor
    factors: tuple[Tensor, ...]
    pivots: Tensor
    output_weights: Tensor
    kernel_size: int = 1
    trellis: bool = False
    unit: float = 1.0

    @classmethod
    def of(
        cls,
        weight: Tensor,
        input_metric: MetricBlocks | None = None,
        output_weights: Tensor | None = None,
        kernel_size: int = 1,
        trellis: bool = False,
    ) -> Problem:
        """Factor the metric: ``n ** 3 / 3`` operations for each block of ``n`` columns.

        Raises:
            RiemError: a weight that is not a finite matrix, a metric or output weights of other sizes or not finite,
                or a metric with negative eigenvalues or pivots beyond float32.
        """
        blocks = checked_blocks(weight, input_metric, output_weights)
        out, columns = weight.shape
        groups = blocks[0].shape[0] if blocks else 1
        factors, pivots = [], []
        for block in blocks:
            factor, pivot = _factor(block.to(weight.device))
            factors.append(factor)
            pivots.append(pivot)
        grouped = weight.detach().float().reshape(groups, out // groups, columns).transpose(1, 2).contiguous()
        if output_weights is None:
            output_weights = torch.ones(out, device=weight.device)
        exponent = math.frexp(float(output_weights.max()))[1]
        unit = 2.0**exponent if abs(exponent) > FARTHEST else 1.0
        return cls(
            grouped,
            tuple(factors),
            torch.cat(pivots, 1) if pivots else torch.ones(1, columns, device=weight.device),
            (output_weights.double() / unit).to(grouped).reshape(groups, -1),
            kernel_size,
            trellis,
            unit,
        )

    @property
    def spread(self) -> float:
        """Standard deviation of the weights; of constant ones a share of their magnitude, so that steps suit them."""
        weight = self.weight.double()
        return max(float(weight.std(unbiased=False)), float(weight.square().mean().sqrt()) / LARGEST_CODE)

    @property
    def log_sensitivity(self) -> float:
        """Natural logarithm of the geometric mean of the distortion that a unit error of one weight does."""
        weights = self.output_weights.double()
        floor = weights.mean() * 1e-3
        relative = 2 * self.pivots.double().log().mean() + weights.clamp_min(floor).log().mean()
        return float(relative) + math.log(self.unit)

    def solve(self, step: float) -> tuple[Lattice, float]:
        """Round to the lattice of that step; returns it and the distortion, in units of the metric.

        With the trellis at that step the bits are about those without, the distortion is less.
        """
        rows = _exponents(self.output_weights, -ROW_POWER / 2)
        many = self.output_weights.numel() >= COLUMN_ROWS
        columns = _exponents(self.pivots.log().mean(0).exp(), -COLUMN_POWER if many else 0.0)
        step = min(max(step / 2 if self.trellis else step, SMALLEST_STEP), LARGEST_STEP)
        step = float(np.float32(step))
        row_steps = step * torch.from_numpy(_powers(rows)).to(self.weight)
        column_steps = torch.from_numpy(_powers(columns)).to(self.weight)
        codes = torch.empty_like(self.weight)
        errors = torch.empty_like(self.output_weights)
        column_steps = column_steps.expand(self.pivots.shape)
        cancel = _cancel_along_paths if self.trellis else _cancel
        cancel(self.weight / row_steps[:, None], self.factors, self.pivots, column_steps, codes, errors)
        distortion = float((errors.double() * self.output_weights.double() * row_steps.double().square()).sum())
        groups, columns_, per_group = codes.shape
        matrix = codes.transpose(1, 2).reshape(groups * per_group, columns_).to(torch.int32).cpu().numpy()
        flat_rows = rows.reshape(-1)
        lattice = Lattice.of(matrix, step, flat_rows, columns, self.kernel_size, trellis=self.trellis)
        return lattice, distortion * self.unit


def _cancel(
    weight: Tensor, factors: Sequence[Tensor], pivots: Tensor, steps: Tensor, codes: Tensor, errors: Tensor
) -> None:
    """Fill in ``codes`` and ``errors``, the distortion of each row, for ``weight`` ``(groups, in, rows)``."""
    errors.zero_()
    for here, factor in _blocks(factors, weight.shape[1]):
        _cancel_block(weight[:, here], factor, pivots[:, here], steps[:, here], codes[:, here], errors)


def _blocks(factors: Sequence[Tensor], columns: int) -> Iterator[tuple[slice, Tensor | None]]:
    """Consecutive columns with their factor; all columns without one where the metric is the identity."""
    start = 0
    for factor in factors:
        yield slice(start, start + factor.shape[-1]), factor
        start += factor.shape[-1]
    if not factors:
        yield slice(0, columns), None


def _cancel_block(
    weight: Tensor, factor: Tensor | None, pivots: Tensor, steps: Tensor, codes: Tensor, errors: Tensor
) -> None:
    if factor is None:
        target = weight / steps[:, :, None]
        codes.copy_(_round(target))
        left = (target - codes) * (steps * pivots)[:, :, None]
        errors += left.square().sum(1)
        return
    columns = weight.shape[1]
    target = weight.clone()  # weights, and what earlier columns have left for these to cancel
    for start in range(0, columns, BLOCK):
        stop = min(start + BLOCK, columns)
        made = torch.empty_like(weight[:, start:stop])
        for column in range(start, stop):
            step = steps[:, column, None]
            wanted = target[:, column]
            code = _round(wanted / step)
            codes[:, column] = code
            rounded = code * step
            errors += ((wanted - rounded) * pivots[:, column, None]).square_()
            error = weight[:, column] - rounded
            made[:, column - start] = error
            if column + 1 < stop:
                row = factor[:, column, column + 1 : stop]
                target[:, column + 1 : stop].baddbmm_(row[:, :, None], error[:, None])
        if stop < columns:
            target[:, stop:].baddbmm_(factor[:, start:stop, stop:].transpose(1, 2), made)


def _cancel_along_paths(
    weight: Tensor, factors: Sequence[Tensor], pivots: Tensor, steps: Tensor, codes: Tensor, errors: Tensor
) -> None:
    """As :func:`_cancel`, with the search along a trellis (:mod:`.trellis_search`), which runs on the CPU."""
    errors.zero_()
    table = prices((weight / steps[:, :, None]).cpu().numpy())
    states = np.zeros(errors.shape, np.uint8)
    for here, factor in _blocks(factors, weight.shape[1]):
        _follow(weight[:, here], factor, pivots[:, here], steps[:, here], table, states, codes[:, here], errors)


def _follow(
    weight: Tensor,
    factor: Tensor | None,
    pivots: Tensor,
    steps: Tensor,
    table: np.ndarray,
    states: np.ndarray,
    codes: Tensor,
    errors: Tensor,
) -> None:
    columns = weight.shape[1]
    target = weight if factor is None else weight.clone()
    for start in range(0, columns, BLOCK):
        stop = min(start + BLOCK, columns)
        here = slice(start, stop)
        for group in range(len(weight)):
            own, aim = (part[group, here].T.contiguous().cpu().numpy() for part in (weight, target))
            square = None if factor is None else factor[group, here, here].contiguous().cpu().numpy()
            step, pivot = (part[group, here].contiguous().cpu().numpy() for part in (steps, pivots))
            found, distortion = search(own, aim, Columns(square, step, pivot, table), states[group])
            codes[group, here] = torch.from_numpy(found).to(codes).T
            errors[group] += torch.from_numpy(distortion).to(errors)
        if factor is not None and stop < columns:
            made = weight[:, here] - codes[:, here] * steps[:, here, None]
            target[:, stop:].baddbmm_(factor[:, here, stop:].transpose(1, 2), made)


def _round(values: Tensor) -> Tensor:
    magnitudes = values.abs().add_(0.5 - DEAD_ZONE).clamp_(0, MAX_SYMBOL).floor_()
    return magnitudes.copysign_(values)


def damped(block: Tensor) -> Tensor:
    """The block ``(groups, b, b)`` with ``DAMPING`` on its diagonal, float64; the identity where it is zero."""
    block = block.double()
    mean = block.diagonal(dim1=-2, dim2=-1).mean(-1)
    ridge = torch.where(mean > 0, mean * DAMPING, 1.0)
    return block + ridge[:, None, None] * torch.eye(block.shape[-1], dtype=block.dtype, device=block.device)


def _factor(block: Tensor) -> tuple[Tensor, Tensor]:
    """``A = R R^T`` with ``R`` upper triangular: ``R`` with its columns divided by the pivots, and the pivots.

    Raises:
        RiemError: the metric has negative eigenvalues, or pivots that float32 cannot hold.
    """
    lower, failed = torch.linalg.cholesky_ex(damped(block).flip(-1, -2))
    if failed.any():
        raise RiemError('the input metric: expected no negative eigenvalue, found one')
    upper = lower.flip(-1, -2)
    pivots = upper.diagonal(dim1=-2, dim2=-1)
    held = pivots.float().contiguous()
    squares = held.square()  # as errors are counted
    if not (squares.isfinite() & (squares > 0)).all():
        raise RiemError(
            'the input metric: expected pivots whose squares float32 can hold, found those of '
            f'{float(pivots.min()):.3g} to {float(pivots.max()):.3g}; divide the metric by its trace'
        )
    return (upper / pivots[:, None, :]).float().contiguous(), held


def _exponents(scales: Tensor, power: float) -> np.ndarray:
    """The nearest exponents of ``scales ** power`` relative to their geometric mean, int32."""
    if power == 0:
        return np.zeros(scales.shape, np.int32)
    values = scales.double().cpu()
    logs = values.clamp_min(values.mean() * 1e-6 + 1e-300).log2() * power
    return ((logs - logs.mean()) * OCTAVE).round().numpy().astype(np.int32)


def _powers(exponents: np.ndarray) -> np.ndarray:
    return powers_of_two(exponents, OCTAVE)
