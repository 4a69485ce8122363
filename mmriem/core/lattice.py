"""The ``lattice`` representation: integer states, ``W_ij = s_i * t_j * z_ij``.

Each output neuron's state is a vector of integers ``z_i``, one for each input neuron, under a row step ``s_i`` and a
column step ``t_j``. The fit looks for the lattice point that is nearest in the pullback metric ``A``: with
``A = R R^T``, ``R`` upper triangular, the error of a row is ``|(w - w') R|^2``, whose component ``j`` holds the errors
of columns up to ``j`` only. So columns are rounded one after the other, each cancelling in its component what the
earlier ones have left there (successive interference cancellation, Babai's nearest plane; the idea behind GPTQ). The
integers are entropy coded, so the steps alone decide how many bits they take.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Union

import numpy as np
import torch
from torch import Tensor

from . import entropy, native, trellis
from .errors import RiemError
from .exact import powers_of_two
from .matrix_free import EVERYTHING, Block, State, spans
from .representation import FLOAT_BITS, Progress, Representation, Work, check_settings, check_weight, register

MetricBlocks = Union[Tensor, Sequence[Tensor]]
"""``A``: ``(in, in)``; or ``(groups, in, in)`` for consecutive rows; or such blocks over consecutive columns."""

DAMPING = 0.01
"""Added to the diagonal of the metric, relative to its mean: the procedural images are not the real ones."""
COLUMN_POWER = 0.25
"""Column steps are the pivots ``R_jj`` to minus this power: 1 is best at high rates for a metric that is exact."""
COLUMN_ROWS = 128
"""Fewer rows share one column step: a step for each column would cost more bits than it saves."""
ROW_POWER = 0.25
"""Row steps are the output weights to minus half this power: likewise."""
DEAD_ZONE = 0.04
"""Magnitudes are rounded up from ``0.5 + DEAD_ZONE`` on: zeros and small numbers cost fewer bits."""
OCTAVE = 4
"""Row and column steps are powers of ``2 ** (1 / OCTAVE)``."""
FINE_OCTAVE = 32
"""Likewise, where training has moved the steps off that grid: a hundredth of them is the most that rounding changes."""
ON_GRID = 1e-3
"""Of steps that are on a grid the exponents are integers within that, for float32 holds the steps."""
MAX_SYMBOL = 1 << 20
LARGEST_CODE = 1 << 10
"""Of constant weights at a step of the spread."""
BLOCK = 128
"""Columns between two updates of all later ones."""
MAX_PERIOD = 1 << 12
MANY = 1 << 17
"""Integers from which on a matrix is coded in ``entropy.LANES`` streams, which cost it next to nothing."""
DECODED = 1 << 16
"""Weights that are computed at a time, in float64, so that these stay in the cache."""
SEARCH_TURNS = 24
"""Steps that a fit to a budget of its own tries."""
_HEADER = struct.Struct('<fII')  # step, bytes of the row exponents, bytes of the column exponents


@register
class Lattice(Representation):
    """Integers ``(out, in)``, a step, and exponents of row and column steps."""

    name = 'lattice'
    state_names = ('z', 'row', 'column')
    integer_states = ('z',)

    def __init__(
        self,
        codes: np.ndarray,
        step: float,
        rows: np.ndarray,
        columns: np.ndarray,
        period: int,
        octave: int = OCTAVE,
        lanes: int | None = None,
        is_path: bool = False,
    ) -> None:
        self.shape = codes.shape
        self._codes, self._rows, self._columns = codes, rows, columns
        self._step, self._period, self._octave = float(np.float32(step)), period, octave
        self._is_path = is_path  # of a trellis
        self._lanes = lanes or (entropy.LANES if codes.size >= MANY else 1)
        self._payload: bytes | None = None

    @classmethod
    def configure(cls, shape: tuple[int, int], bits: float, **options: Any) -> dict[str, Any] | None:
        """Options: ``period``, the number of taps of a convolution's kernel."""
        least = 8 * (_HEADER.size + 8)
        if bits < least:
            return None
        return {'budget': int(bits), 'period': options.get('period') or 1}

    @classmethod
    def planned_bits(cls, shape: tuple[int, int], settings: dict[str, Any]) -> int:
        return settings['budget']

    @classmethod
    def fit(
        cls,
        weight: Tensor,
        settings: dict[str, Any],
        *,
        input_metric: MetricBlocks | None = None,
        output_weights: Tensor | None = None,
        seed: int = 0,
        seeds: int = 1,
        effort: float = 1.0,
        progress: Progress | None = None,
    ) -> Lattice:
        """Finds the smallest step whose payload fits; ``seed``, ``seeds`` and ``effort`` change nothing."""
        check_settings(cls.name, settings, {'budget': (1, 1 << 62), 'period': (1, MAX_PERIOD)})
        problem = Problem.of(weight, input_metric, output_weights, settings['period'])
        step, best, low, high = problem.spread or 1.0, None, None, None
        for turn in range(SEARCH_TURNS):
            found = problem.solve(step)[0]
            if found.payload_bits() <= settings['budget']:
                best, high = found, step
            else:
                low = step
            if progress:
                progress((turn + 1) / SEARCH_TURNS)
            if low and high and high / low < 1.005:
                break
            step = math.sqrt(low * high) if low and high else step * (0.5 if low is None else 2.0)
        if best is None:
            raise RiemError(f'a budget of {settings["budget"]} bits is too small for a matrix of {tuple(weight.shape)}')
        return best

    @property
    def symbols(self) -> int:
        return self._codes.size

    @property
    def codes(self) -> np.ndarray:
        """The integers ``(out, in)``, int32."""
        return self._codes.astype(np.int32, copy=False)

    def settings(self) -> dict[str, Any]:
        others = {'octave': (self._octave, OCTAVE), 'lanes': (self._lanes, 1), 'trellis': (int(self._is_path), 0)}
        return {'period': self._period, **{name: value for name, (value, usual) in others.items() if value != usual}}

    def to_payload(self) -> bytes:
        if self._payload is None:
            rows, columns = _pack_exponents(self._rows), _pack_exponents(self._columns)
            header = _HEADER.pack(self._step, len(rows), len(columns))
            self._payload = (
                header + rows + columns + entropy.encode(self._codes, self._period, self._lanes, self._is_path)
            )
        return self._payload

    @classmethod
    def from_payload(cls, shape: tuple[int, int], settings: dict[str, Any], payload: bytes) -> Lattice:
        others = {'octave': (FINE_OCTAVE, FINE_OCTAVE), 'lanes': (entropy.LANES, entropy.LANES), 'trellis': (1, 1)}
        present = {name: bound for name, bound in others.items() if isinstance(settings, dict) and name in settings}
        check_settings(cls.name, settings, {'period': (1, MAX_PERIOD), **present})
        octave, lanes, is_path = settings.get('octave', OCTAVE), settings.get('lanes', 1), 'trellis' in settings
        if shape[1] % settings['period']:
            raise RiemError(f'lattice: expected a divisor of {shape[1]} columns as period, found {settings["period"]}')
        if len(payload) < _HEADER.size:
            raise RiemError(f'lattice: expected at least {_HEADER.size} bytes, found {len(payload)}')
        step, n_rows, n_columns = _HEADER.unpack_from(payload)
        if not (math.isfinite(step) and step > 0):
            raise RiemError(f'lattice: expected a finite step above 0, found {step}')
        first, second = _HEADER.size + n_rows, _HEADER.size + n_rows + n_columns
        if second > len(payload):
            raise RiemError(f'lattice: expected {second} bytes and more, found {len(payload)}')
        lattice = cls(
            entropy.decode(payload[second:], shape, settings['period'], lanes, is_path),
            step,
            _unpack_exponents(payload[_HEADER.size : first], shape[0], octave),
            _unpack_exponents(payload[first:second], shape[1], octave),
            settings['period'],
            octave,
            lanes,
            is_path,
        )
        lattice._payload = bytes(payload)
        return lattice

    def decode(self) -> Tensor:
        rows = self._step * powers_of_two(self._rows, self._octave)[:, None]
        columns = powers_of_two(self._columns, self._octave)
        weight = np.empty(self.shape, np.float32)
        if native.module is not None and self._codes.dtype == np.int8:
            native.module.dequantise(weight, rows, columns, self._codes)
            return torch.from_numpy(weight)
        height = max(1, DECODED // self.shape[1])
        with np.errstate(over='ignore'):  # the container refuses what is not finite
            for start in range(0, len(weight), height):
                part = slice(start, start + height)
                weight[part] = rows[part] * columns * self._codes[part]
        return torch.from_numpy(weight)

    def states(self) -> dict[str, Tensor]:
        """The common step is shared out to rows and columns: training moves both by about the same share."""
        shared = _half_way(self._step)
        rows, columns = powers_of_two(self._rows, self._octave), powers_of_two(self._columns, self._octave)
        return {
            'z': torch.from_numpy(self._codes.astype(np.float32)),
            'row': torch.from_numpy((self._step / shared * rows).astype(np.float32)),
            'column': torch.from_numpy((shared * columns).astype(np.float32)),
        }

    @classmethod
    def from_states(cls, states: dict[str, Tensor], settings: dict[str, Any] | None, period: int = 1) -> Lattice:
        """Rounds ``z`` to integers, and steps that are on no grid to that of ``FINE_OCTAVE``.

        Integers that still follow paths of the trellis are stored as such; trained ones do not.
        """
        steps = [states[name].detach().double() for name in ('row', 'column')]
        signs = steps[0].sign()[:, None] * steps[1].sign()
        codes = (states['z'].detach().round().clamp(-MAX_SYMBOL, MAX_SYMBOL) * signs).to(torch.int32).numpy()
        logs = [_logarithms(x) for x in steps]
        octave = OCTAVE if all(_is_on_grid(x, OCTAVE) for x in logs) else FINE_OCTAVE
        (row_step, rows), (column_step, columns) = (_on_grid(x, octave) for x in logs)
        is_path = trellis.halves(np.abs(codes)) is not None
        return cls(codes, row_step * column_step, rows, columns, period, octave, is_path=is_path)

    @classmethod
    def regenerate(cls, states: dict[str, Tensor]) -> Tensor:
        return states['row'][:, None] * states['column'] * states['z']

    @classmethod
    def random_states(cls, shape: tuple[int, int], settings: dict[str, Any]) -> dict[str, Tensor]:
        return {'z': torch.randn(shape).mul_(2).round_(), 'row': torch.ones(shape[0]), 'column': torch.ones(shape[1])}

    @classmethod
    def scaled_states(cls, states: dict[str, Tensor], gain: float, shift: float) -> dict[str, Tensor]:
        shared = _half_way(gain)
        return {**states, 'row': gain / shared * states['row'], 'column': shared * states['column']}

    def packed_states(self) -> dict[str, State]:
        return self.pack_states(self.states(), self.settings())

    @classmethod
    def pack_states(cls, states: dict[str, Tensor], settings: dict[str, Any]) -> dict[str, State]:
        """The integers in the smallest type that holds them all: there is no access to rows of an entropy coded one."""
        largest = int(states['z'].abs().max())
        small = next(kind for kind in (torch.int8, torch.int16, torch.int32) if largest <= torch.iinfo(kind).max)
        return {**states, 'z': states['z'].to(small)}

    @classmethod
    def rows(cls, states: Mapping[str, State]) -> int:
        return states['z'].shape[0]

    @classmethod
    def blocks(cls, states: Mapping[str, State], most: int, taps: int = 1) -> Iterator[Block]:
        z, row, column = (states[name] for name in cls.state_names)
        for part in spans(0, len(z), max(1, most // len(column))):
            yield Block(EVERYTHING, part, {'z': z[part], 'row': row[part], 'column': column})

    @classmethod
    def regeneration(cls, shape: tuple[int, int], settings: dict[str, Any]) -> list[Work]:
        """Two multiplications, by the row step and by the column step."""
        return [Work(2 * shape[0] * shape[1], (FLOAT_BITS, FLOAT_BITS))]

    @property
    def can_train_integers(self) -> bool:
        """Not along a trellis, where integers hang together."""
        return not self._is_path

    @property
    def product_bits(self) -> int:
        """Those of the integers: the steps belong to rows and columns."""
        return int(self.states()['z'].abs().max()).bit_length() + 1


@dataclass(frozen=True, eq=False)
class Problem:
    """A weight matrix with its factored metric, ready to be rounded at any step.

    Attributes:
        weight: ``(groups, in, out / groups)`` float32: columns are contiguous.
        factors: for each block of columns the unit upper triangular ``R_ij / R_jj``, ``(groups, b, b)`` float32.
        pivots: ``R_jj``, ``(groups, in)`` float32.
        output_weights: ``g``, ``(groups, out / groups)`` float32.
        period: taps of a kernel.
        with_trellis: integers are sought along the paths of :mod:`mmriem.core.trellis`, on a grid of half the step.
    """

    weight: Tensor
    factors: tuple[Tensor, ...]
    pivots: Tensor
    output_weights: Tensor
    period: int = 1
    with_trellis: bool = False

    @classmethod
    def of(
        cls,
        weight: Tensor,
        input_metric: MetricBlocks | None = None,
        output_weights: Tensor | None = None,
        period: int = 1,
        with_trellis: bool = False,
    ) -> Problem:
        """Factor the metric: ``n ** 3 / 3`` operations for each block of ``n`` columns.

        Raises:
            RiemError: a weight that is not a finite matrix, a metric or output weights of other sizes or not finite.
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
        return cls(
            grouped,
            tuple(factors),
            torch.cat(pivots, 1) if pivots else torch.ones(1, columns, device=weight.device),
            output_weights.to(grouped).reshape(groups, -1),
            period,
            with_trellis,
        )

    @property
    def spread(self) -> float:
        """Standard deviation of the weights; of constant ones a share of their magnitude, so that steps suit them."""
        weight = self.weight.double()
        return max(float(weight.std(unbiased=False)), float(weight.square().mean().sqrt()) / LARGEST_CODE)

    @property
    def log_sensitivity(self) -> float:
        """Natural logarithm of the geometric mean of the damage that a unit error of one weight does."""
        weights = self.output_weights.double()
        floor = weights.mean() * 1e-3
        return float(2 * self.pivots.double().log().mean() + weights.clamp_min(floor).log().mean())

    def solve(self, step: float) -> tuple[Lattice, float]:
        """Round to the lattice of that step; returns it and the damage, in units of the metric.

        With the trellis at that step the bits are about those without, the damage is less.
        """
        rows = _exponents(self.output_weights, -ROW_POWER / 2)
        many = self.output_weights.numel() >= COLUMN_ROWS
        columns = _exponents(self.pivots.log().mean(0).exp(), -COLUMN_POWER if many else 0.0)
        step = float(np.float32(step / 2 if self.with_trellis else step))
        row_steps = step * torch.from_numpy(_powers(rows)).to(self.weight)
        column_steps = torch.from_numpy(_powers(columns)).to(self.weight)
        codes = torch.empty_like(self.weight)
        errors = torch.empty_like(self.output_weights)
        column_steps = column_steps.expand(self.pivots.shape)
        cancel = _cancel_along_paths if self.with_trellis else _cancel
        cancel(self.weight / row_steps[:, None], self.factors, self.pivots, column_steps, codes, errors)
        damage = float((errors.double() * self.output_weights.double() * row_steps.double().square()).sum())
        groups, columns_, per_group = codes.shape
        matrix = codes.transpose(1, 2).reshape(groups * per_group, columns_).to(torch.int32).cpu().numpy()
        flat_rows = rows.reshape(-1)
        return Lattice(matrix, step, flat_rows, columns, self.period, is_path=self.with_trellis), damage


def _cancel(
    weight: Tensor, factors: Sequence[Tensor], pivots: Tensor, steps: Tensor, codes: Tensor, errors: Tensor
) -> None:
    """Fill in ``codes`` and ``errors``, the damage of each row, for ``weight`` ``(groups, in, rows)``."""
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
    """As :func:`_cancel`, with the search of :mod:`mmriem.core.trellis`, which runs on the CPU."""
    errors.zero_()
    table = trellis.prices((weight / steps[:, :, None]).cpu().numpy())
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
            parts = (part[group, here].T.contiguous().cpu().numpy() for part in (weight, target))
            square = None if factor is None else factor[group, here, here].contiguous().cpu().numpy()
            scales = (part[group, here].contiguous().cpu().numpy() for part in (steps, pivots))
            found, damage = trellis.search(*parts, trellis.Columns(square, *scales, table), states[group])
            codes[group, here] = torch.from_numpy(found).to(codes).T
            errors[group] += torch.from_numpy(damage).to(errors)
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
    """``A = R R^T`` with ``R`` upper triangular: ``R`` with its columns divided by the pivots, and the pivots."""
    lower = torch.linalg.cholesky(damped(block).flip(-1, -2))
    upper = lower.flip(-1, -2)
    pivots = upper.diagonal(dim1=-2, dim2=-1)
    return (upper / pivots[:, None, :]).float().contiguous(), pivots.float().contiguous()


def checked_blocks(weight: Tensor, metric: MetricBlocks | None, output_weights: Tensor | None) -> list[Tensor]:
    """The metric as blocks ``(groups, b, b)`` over consecutive columns, none where it is the identity.

    Raises:
        RiemError: a weight that is not a finite matrix, a metric or output weights of other sizes or not finite.
    """
    check_weight(weight, None, output_weights)
    out, columns = weight.shape
    blocks = [] if metric is None else [metric] if isinstance(metric, Tensor) else list(metric)
    blocks = [block[None] if block.ndim == 2 else block for block in blocks]
    sizes = [tuple(block.shape) for block in blocks]
    square = all(len(size) == 3 and size[1] == size[2] and size[0] == sizes[0][0] for size in sizes)
    if blocks and not (square and sum(size[1] for size in sizes) == columns and out % sizes[0][0] == 0):
        raise RiemError(f'the input metric has shape {sizes}, expected square blocks over {columns} columns')
    if any(not (block.isfinite().all() and (block.diagonal(dim1=1, dim2=2) >= 0).all()) for block in blocks):
        raise RiemError('the input metric: expected finite values and a non-negative diagonal, found others')
    return blocks


def _exponents(scales: Tensor, power: float) -> np.ndarray:
    """The nearest exponents of ``scales ** power`` relative to their geometric mean, int32."""
    if power == 0:
        return np.zeros(scales.shape, np.int32)
    values = scales.double().cpu()
    logs = values.clamp_min(values.mean() * 1e-6 + 1e-300).log2() * power
    return ((logs - logs.mean()) * OCTAVE).round().numpy().astype(np.int32)


def _powers(exponents: np.ndarray) -> np.ndarray:
    return powers_of_two(exponents, OCTAVE)


def _half_way(factor: float) -> float:
    """About the square root: a power of two, so that dividing by it changes no bit."""
    return 2.0 ** round(math.log2(abs(factor)) / 2)


def _logarithms(steps: Tensor) -> np.ndarray:
    """Binary logarithms of magnitudes; of a step of 0, whose integers are 0 too, any one of the others."""
    magnitudes = steps.abs()
    largest = float(magnitudes.max()) or 1.0
    return torch.where(magnitudes > 0, magnitudes, largest).log2().numpy()


def _is_on_grid(logarithms: np.ndarray, octave: int) -> bool:
    exponents = (logarithms - logarithms[0]) * octave
    return float(np.abs(exponents - exponents.round()).max()) < ON_GRID


def _on_grid(logarithms: np.ndarray, octave: int) -> tuple[float, np.ndarray]:
    """A common step, and exponents that are 0 in the mean."""
    exponents = np.round((logarithms - logarithms[0]) * octave)
    middle = np.round(exponents.mean())
    return 2.0 ** (logarithms[0] + middle / octave), (exponents - middle).astype(np.int32)


def _pack_exponents(exponents: np.ndarray) -> bytes:
    return entropy.encode_vector(exponents) if exponents.any() else b''


def _unpack_exponents(data: bytes, count: int, octave: int) -> np.ndarray:
    if not data:
        return np.zeros(count, np.int32)
    exponents = entropy.decode_vector(data, count)
    if np.abs(exponents).max() > 100 * octave:
        raise RiemError(f'lattice: expected exponents of {-100 * octave} to {100 * octave}, found others')
    return exponents
