"""The ``sigmoid`` representation: the paper's neuronal states under a Riemannian metric.

    W_ij = c + sum_{m=1..Dmu} w_m * sum_{k=0..K-1} sigmoid((M_k (q_i + shift_k(p_j)) + b_k)_m)

with ``M_k`` ``(Dmu, Dq)``, ``b_k`` ``(Dmu,)`` and ``shift_k(p) = concat(p[s:], p[:s])``, ``s = k * Dq // K``; ``K``
is 6 in the paper ("Data-free Neural Representation Compression with Riemannian Neural Dynamics", ICML 2024).

The argument splits into ``u_i + v_j``, so with ``a_i = exp(-u_i)`` and ``b_j = exp(-v_j)`` once for each neuron, a pair
costs one multiplication, one addition and one division: ``sigmoid(u_i + v_j) = 1 / (1 + a_i b_j)``.

Two things go beyond the paper. Matrices larger than a tile give a neuron one state for each block of its partners,
all under one metric, which keeps the cost of a weight constant; a matrix of one tile is exactly the formula above.
And the fit alternates Levenberg-Marquardt steps: with ``p`` fixed each ``q_i`` is a small least-squares problem of its
own, and the other way round. docs/experiments.md holds the measurements.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from . import exact
from .errors import RiemError
from .matrix_free import EVERYTHING, Block, PackedTensor, State, spans
from .quantise import STATE_BITS, Grid, PayloadReader, float_bytes, pack, packed_bytes
from .representation import FLOAT_BITS, Progress, Representation, Work, check_settings, check_weight, register

TILE = (64, 64)
"""Most rows and columns of a tile. Larger tiles cost more for each weight and fit no better."""
METRIC_BITS = 8
MAX_EXPONENT = 80.0
"""Bound of ``|u|`` and ``|v|``, so that each of ``a`` and ``b`` is a finite normal float32 number other than 0; where
their product overflows, the sigmoid is 0."""
MAX_ARGUMENTS = 1 << 26
"""Most sigmoid arguments of the neurons on one side of a tile: bounds the memory that a hostile file can ask for."""
SWEEPS = 56
"""Alternating sweeps at effort 1."""
FIRST_SWEEPS = 5
"""Of these each has a curvature of its own; then one serves for ``REPEATS`` steps."""
REPEATS = 3
METRIC_STEPS, MOST_METRIC_STEPS = 8, 16
"""Adam steps on the metric in a sweep: one for each tile within these bounds."""
LEARNING_RATE = 3e-3
FOLLOWING_SWEEPS = 2
"""Of the states once the metric is rounded."""
ROUNDING_SWEEPS = 4
CHUNK = {True: 1 << 19, False: 1 << 26}
"""Sigmoids of the tiles that are worked on together, on a CPU and on other devices: what fits the nearest cache."""
ROUNDING_CHUNK = {True: 1 << 21, False: 1 << 26}
"""Likewise where states are rounded, one after the other."""
ALIGNMENT = 16
"""States are padded with zeros to a multiple of this before products."""
KEPT = 3
"""Random starts that go on after the first cull."""
MIN_GAIN = 1e-3
"""The fit ends early where ``PATIENCE`` sweeps have lowered the error by less than this share of it for each step."""
PATIENCE = 2
CLIP = {2: 1.8, 3: 2.3, 4: 2.8, 5: 3.3}
"""Range of the state grid in standard deviations, by state bits; from minimum to maximum where not listed."""
BOUNDS = {
    'dq': (1, 1 << 14),
    'dmu': (1, 1 << 12),
    'shifts': (1, 64),
    'row_blocks': (1, 1 << 16),
    'col_blocks': (1, 1 << 16),
    'state_bits': STATE_BITS,
}


@register
class Sigmoid(Representation):
    """Quantised states and metric.

    Attributes:
        shape: ``(out, in)``.
        q_codes: ``(col_blocks, out, Dq)`` uint8, a state of each output neuron for each block of columns.
        p_codes: ``(row_blocks, in, Dq)`` uint8, a state of each input neuron for each block of rows.
        metric_codes: ``(K, Dmu, Dq)`` uint8.
    """

    name = 'sigmoid'
    state_names = ('q', 'p', 'M', 'b', 'w', 'c')

    def __init__(
        self,
        codes: dict[str, Tensor],
        grids: dict[str, Grid],
        b: Tensor,
        w: Tensor,
        c: Tensor,
    ) -> None:
        self.shape = (codes['q'].shape[1], codes['p'].shape[1])
        self._codes, self._grids = codes, grids
        self._b, self._w, self._c = b, w, c

    @classmethod
    def configure(cls, shape: tuple[int, int], bits: float, **options: Any) -> dict[str, Any] | None:
        """The largest ``Dq``, and ``Dmu`` to match, whose payload fits ``bits``.

        Options: ``dq``, ``dmu``, ``shifts`` (6), ``row_blocks``, ``col_blocks``, ``state_bits`` (0: by the budget).
        """
        state_bits = options.get('state_bits') or _state_bits(bits / math.prod(shape))
        fixed = {
            'shifts': options.get('shifts') or 6,
            'row_blocks': options.get('row_blocks') or math.ceil(shape[0] / TILE[0]),
            'col_blocks': options.get('col_blocks') or math.ceil(shape[1] / TILE[1]),
            'state_bits': state_bits,
        }
        dq = options.get('dq') or int(bits / (state_bits * _state_rows(shape, fixed))) + 1
        while dq >= 1:
            dmu = options.get('dmu') or _matching_dmu(dq, fixed['shifts'])
            settings = {'dq': dq, 'dmu': dmu, **fixed}
            if payload_bits(shape, settings) <= bits:
                _check_shape(shape, settings)
                return settings
            if options.get('dq'):
                return None
            dq -= 1
        return None

    @classmethod
    def planned_bits(cls, shape: tuple[int, int], settings: dict[str, Any]) -> int:
        return payload_bits(shape, settings)

    @classmethod
    def fit(
        cls,
        weight: Tensor,
        settings: dict[str, Any],
        *,
        input_metric: Tensor | None = None,
        output_weights: Tensor | None = None,
        seed: int = 0,
        seeds: int = 1,
        effort: float = 1.0,
        progress: Progress | None = None,
    ) -> Sigmoid:
        """Alternating Levenberg-Marquardt, then rounding in the metric of the fit; see :class:`Representation`.

        Of the input metric the diagonal is used: the states of a tile see only its own columns.
        """
        check_weight(weight, input_metric, output_weights)
        _check_shape(tuple(weight.shape), settings)
        pair_weights = _pair_weights(tuple(weight.shape), input_metric, output_weights, weight.device)
        schedule = _schedule(max(4, round(SWEEPS * effort)))
        runs = [_Fit(weight, settings, pair_weights, seed + number) for number in range(max(1, seeds))]
        first, second = -(-len(schedule) // 4), -(-len(schedule) // 2)
        parts = [(0, first, len(runs)), (first, second, min(KEPT, len(runs))), (second, len(schedule), 1)]
        total = sum((stop - start) * kept for start, stop, kept in parts) + ROUNDING_SWEEPS + FOLLOWING_SWEEPS
        done = 0

        def advance(count: int = 1) -> None:
            nonlocal done
            done += count
            if progress:
                progress(done / total)

        for start, stop, kept in parts:
            runs = sorted(runs, key=lambda run: run.error)[:kept]
            for run in runs:
                for number in range(start, stop):
                    if run.idle < PATIENCE:
                        run.sweep(*schedule[number])
                    advance()
        return runs[0].quantised(advance)

    @property
    def symbols(self) -> int:
        return sum(codes.numel() for codes in self._codes.values())

    def settings(self) -> dict[str, Any]:
        (col_blocks, _, dq), (row_blocks, _, _) = self._codes['q'].shape, self._codes['p'].shape
        shifts, dmu, _ = self._codes['M'].shape
        state_bits = self._grids['q'].bits
        return dict(dq=dq, dmu=dmu, shifts=shifts, row_blocks=row_blocks, col_blocks=col_blocks, state_bits=state_bits)

    def to_payload(self) -> bytes:
        grids = [float_bytes(x, '<f2') for key in 'qpM' for x in (self._grids[key].low, self._grids[key].step)]
        floats = [float_bytes(self._b, '<f2'), float_bytes(self._w, '<f4'), float_bytes(self._c, '<f4')]
        return b''.join(grids + floats + [pack(self._codes[key], self._grids[key].bits) for key in 'qpM'])

    @classmethod
    def from_payload(cls, shape: tuple[int, int], settings: dict[str, Any], payload: bytes) -> Sigmoid:
        _check_shape(shape, settings)
        reader = PayloadReader(payload, payload_bits(shape, settings) // 8)
        dq, dmu, shifts, bits = (settings[key] for key in ('dq', 'dmu', 'shifts', 'state_bits'))
        grids = {
            key: Grid(reader.floats('<f2', (columns,)), reader.floats('<f2', (columns,)), levels)
            for key, columns, levels in (('q', dq, bits), ('p', dq, bits), ('M', 1, METRIC_BITS))
        }
        b, w, c = reader.floats('<f2', (shifts, dmu)), reader.floats('<f4', (dmu,)), reader.floats('<f4', ())
        codes = {
            'q': reader.integers(bits, (settings['col_blocks'], shape[0], dq)),
            'p': reader.integers(bits, (settings['row_blocks'], shape[1], dq)),
            'M': reader.integers(METRIC_BITS, (shifts, dmu, dq)),
        }
        return cls(codes, grids, b, w, c)

    def states(self) -> dict[str, Tensor]:
        dequantised = {key: self._grids[key].values(self._codes[key]) for key in 'qp'}
        metric = self._grids['M'].values(self._codes['M'][..., None])[..., 0]
        return {**dequantised, 'M': metric, 'b': self._b, 'w': self._w, 'c': self._c}

    def decode(self) -> Tensor:
        states = self.states()
        return _evaluate(*(states[name] for name in self.state_names))

    @classmethod
    def from_states(cls, states: dict[str, Tensor], settings: dict[str, Any] | None, period: int = 1) -> Sigmoid:
        (shifts, dmu, dq), q, p = states['M'].shape, states['q'], states['p']
        bits = settings['state_bits'] if settings else STATE_BITS[1]
        own = dict(dq=dq, dmu=dmu, shifts=shifts, row_blocks=len(p), col_blocks=len(q), state_bits=bits)
        fit = _Fit(cls.regenerate(states), own, None, 0)
        fit.start_from(states)
        return fit.quantised(lambda: None)

    @classmethod
    def regenerate(cls, states: dict[str, Tensor]) -> Tensor:
        """The same bits as :meth:`decode`, differentiable; memory grows with one tile, not with the matrix."""
        return _Regenerate.apply(*(states[name] for name in cls.state_names))

    @classmethod
    def random_states(cls, shape: tuple[int, int], settings: dict[str, Any]) -> dict[str, Tensor]:
        dq, dmu, shifts = settings['dq'], settings['dmu'], settings['shifts']
        metric, b, w, c = _random_metric(dq, dmu, shifts)
        q = torch.randn(settings['col_blocks'], shape[0], dq)
        p = torch.randn(settings['row_blocks'], shape[1], dq)
        return dict(zip(cls.state_names, (q, p, metric, b, w, c)))

    @classmethod
    def scaled_states(cls, states: dict[str, Tensor], gain: float, shift: float) -> dict[str, Tensor]:
        return {**states, 'w': states['w'] * gain, 'c': states['c'] * gain + shift}

    def packed_states(self) -> dict[str, State]:
        packed = {key: PackedTensor.of(self._codes[key], self._grids[key]) for key in 'qp'}
        metric = self._grids['M'].values(self._codes['M'][..., None])[..., 0]
        return {**packed, 'M': metric, 'b': self._b, 'w': self._w, 'c': self._c}

    @classmethod
    def pack_states(cls, states: dict[str, Tensor], settings: dict[str, Any]) -> dict[str, State]:
        return {**states, **{key: PackedTensor.nearest(states[key], settings['state_bits']) for key in 'qp'}}

    @classmethod
    def rows(cls, states: Mapping[str, State]) -> int:
        return states['q'].shape[1]

    @classmethod
    def blocks(cls, states: Mapping[str, State], most: int, taps: int = 1) -> Iterator[Block]:
        """The rows of a block are all in one tile, and have the column blocks of the matrix."""
        q, p = states['q'], states['p']
        shared = {name: states[name] for name in 'Mbwc'}
        for i, tile in enumerate(_blocks(q.shape[1], p.shape[0])):
            own = p[i : i + 1]
            for part in spans(tile.start, tile.stop, max(1, most // p.shape[1])):
                yield Block(EVERYTHING, part, {'q': q[:, part], 'p': own, **shared})

    @classmethod
    def regeneration(cls, shape: tuple[int, int], settings: dict[str, Any]) -> list[Work]:
        """The arguments of each neuron, and for each weight ``K * Dmu`` sigmoids and as many multiply-adds."""
        units = settings['shifts'] * settings['dmu']
        arguments = Work(_state_rows(shape, settings) * settings['dq'] * units, (settings['state_bits'], METRIC_BITS))
        return [arguments, Work(2 * shape[0] * shape[1] * units, (FLOAT_BITS, FLOAT_BITS))]


def parameter_count(shape: tuple[int, int], settings: dict[str, Any]) -> int:
    """Number of stored parameters, as the paper counts them.

    >>> one_tile = dict(dq=52, dmu=14, shifts=6, row_blocks=1, col_blocks=1)
    >>> parameter_count((128, 256), one_tile)
    24435
    """
    dq, dmu, shifts = settings['dq'], settings['dmu'], settings['shifts']
    return _state_rows(shape, settings) * dq + shifts * (dq * dmu + dmu) + dmu + 1


def payload_bits(shape: tuple[int, int], settings: dict[str, Any]) -> int:
    """Exact size of the payload in bits: states, metric, offsets, and the grids."""
    dq, dmu, shifts, bits = (settings[key] for key in ('dq', 'dmu', 'shifts', 'state_bits'))
    states = packed_bytes(settings['col_blocks'] * shape[0] * dq, bits) + packed_bytes(
        settings['row_blocks'] * shape[1] * dq, bits
    )
    grids = 2 * (4 * dq + 2)
    return 8 * (states + grids + shifts * dmu * dq + 2 * shifts * dmu + 4 * dmu + 4)


def _check_shape(shape: tuple[int, int], settings: dict[str, Any]) -> None:
    """Raise :class:`RiemError` unless the settings are valid, and for a matrix of this shape."""
    check_settings(Sigmoid.name, settings, BOUNDS)
    blocks = (settings['row_blocks'], settings['col_blocks'])
    if any(count > neurons for count, neurons in zip(blocks, shape)):
        raise RiemError(f"settings of 'sigmoid': more blocks than neurons in a weight matrix of shape {shape}")
    widest = max(math.ceil(neurons / count) for count, neurons in zip(blocks, shape))
    if (arguments := widest * settings['shifts'] * settings['dmu']) > MAX_ARGUMENTS:
        raise RiemError(
            f"settings of 'sigmoid': expected at most {MAX_ARGUMENTS} arguments in a tile, found {arguments}"
        )


def _state_rows(shape: tuple[int, int], settings: dict[str, Any]) -> int:
    return settings['col_blocks'] * shape[0] + settings['row_blocks'] * shape[1]


def _state_bits(bits_per_weight: float) -> int:
    """State bits at which about as many states as weights fit the budget, where the fit is best for its bytes."""
    return min(8, max(4, math.ceil(bits_per_weight / 1.02)))


def _matching_dmu(dq: int, shifts: int) -> int:
    """An even ``Dmu`` with about 1.7 sigmoids for each state dimension: fewer leave directions unused."""
    return 2 * max(1, round(1.7 * dq / shifts / 2))


def _schedule(sweeps: int) -> list[tuple[float, int]]:
    """The share that is done and the repeats of each sweep, of so many in all."""
    schedule, done = [], 0
    while done < sweeps:
        repeats = min(REPEATS if done >= FIRST_SWEEPS else 1, sweeps - done)
        schedule.append((done / sweeps, repeats))
        done += repeats
    return schedule


def _pair_weights(
    shape: tuple[int, int], input_metric: Tensor | None, output_weights: Tensor | None, device: torch.device
) -> Tensor | None:
    """``(out, in)`` square roots of the weights of the squared errors, of mean square 1; None for equal weights."""
    if input_metric is None and output_weights is None:
        return None
    columns = torch.ones(shape[1], device=device) if input_metric is None else input_metric.detach().float().diagonal()
    rows = torch.ones(shape[0], device=device) if output_weights is None else output_weights.detach().float()
    squares = rows[:, None] * columns
    return (squares / squares.mean().clamp_min(1e-30)).sqrt()


# ---- regenerating the weights -----------------------------------------------------------------------------------


def _shifted(metric: Tensor) -> Tensor:
    """``N`` ``(K * Dmu, Dq)`` with ``N_k p = M_k shift_k(p)``, from ``M`` ``(K, Dmu, Dq)``."""
    shifts, _, dq = metric.shape
    return torch.cat([torch.roll(metric[k], k * dq // shifts, -1) for k in range(shifts)])


def _blocks(size: int, count: int) -> list[slice]:
    """``count`` consecutive blocks of nearly equal length."""
    edges = [size * number // count for number in range(count + 1)]
    return [slice(start, stop) for start, stop in zip(edges, edges[1:])]


def _tiles(q: Tensor, p: Tensor) -> Iterator[tuple[int, slice, int, slice]]:
    """Row block, its rows, column block, its columns."""
    for i, rows in enumerate(_blocks(q.shape[1], p.shape[0])):
        for j, columns in enumerate(_blocks(p.shape[1], q.shape[0])):
            yield i, rows, j, columns


def _evaluate(q: Tensor, p: Tensor, metric: Tensor, b: Tensor, w: Tensor, c: Tensor) -> Tensor:
    """The weight matrix in a fixed order of exactly rounded operations."""
    rows_map, columns_map = metric.reshape(-1, metric.shape[-1]), _shifted(metric)
    mixing = w.repeat(metric.shape[0])
    weight = q.new_empty(q.shape[1], p.shape[1])
    for i, rows, j, columns in _tiles(q, p):
        a_rows = _exact_decay(exact.product(q[j, rows], rows_map) + b.reshape(-1).double())
        a_columns = _exact_decay(exact.product(p[i, columns], columns_map))
        total = c.expand(a_rows.shape[1], a_columns.shape[1]).clone()
        for unit in range(len(mixing)):
            term = a_rows[unit, :, None] * a_columns[unit]
            total += torch.div(mixing[unit], term.add_(1), out=term)
        weight[rows, columns] = total
    return weight


def _exact_decay(arguments: Tensor) -> Tensor:
    """``exp(-x)`` as float32 ``(U, n)`` of float64 ``(n, U)``."""
    return exact.exponential(-arguments.clamp(-MAX_EXPONENT, MAX_EXPONENT)).float().T.contiguous()


class _Regenerate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *states: Tensor) -> Tensor:
        ctx.save_for_backward(*states)
        return _evaluate(*states)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        q, p, metric, b, w, _ = ctx.saved_tensors
        grads = [torch.zeros_like(x) for x in ctx.saved_tensors]
        for i, rows, j, columns in _tiles(q, p):
            tile = _Tile(q[j, rows], p[i, columns], metric, b, w)
            dq, dp, *shared = tile.gradients(gradient[rows, columns])
            grads[0][j, rows] += dq
            grads[1][i, columns] += dp
            for total, part in zip(grads[2:], shared):
                total += part
        return tuple(grads)


def _random_metric(
    dq: int, dmu: int, shifts: int, amplitude: float = 1.0, generator: torch.Generator | None = None
) -> list[Tensor]:
    """``M``, ``b``, ``w``, ``c`` to start from; arguments of unit spread for states of unit spread.

    The signs of ``w`` alternate: were they alike, the second-order terms of the sigmoids could not cancel.
    """
    metric = torch.randn(shifts, dmu, dq, generator=generator) / math.sqrt(dq)
    offsets = torch.randn(shifts, dmu, generator=generator)
    return [metric, offsets, amplitude * (torch.arange(dmu) % 2 * 2.0 - 1.0), torch.zeros(())]


# ---- fitting -----------------------------------------------------------------------------------------------------


def _decay(argument: Tensor) -> Tensor:
    return torch.exp(-argument.clamp(-MAX_EXPONENT, MAX_EXPONENT))


def _sigmoids(row_arguments: Tensor, column_decay: Tensor) -> Tensor:
    """``(R, C, U)`` sigmoids of all pairs, one temporary."""
    return (_decay(row_arguments)[:, None] * column_decay).add_(1).reciprocal_()


def _slopes(sigmoids: Tensor, mixing: Tensor) -> Tensor:
    """``w s (1 - s)`` in the memory of the sigmoids: a fresh temporary would cost more than the arithmetic."""
    return torch.addcmul(sigmoids, sigmoids, sigmoids, value=-1, out=sigmoids).mul_(mixing)


class _Tile:
    """One tile at given states: sigmoids and gradients. ``q`` ``(R, Dq)``, ``p`` ``(C, Dq)``."""

    def __init__(self, q: Tensor, p: Tensor, metric: Tensor, b: Tensor, w: Tensor) -> None:
        self.q, self.p, self.shape = q, p, metric.shape
        self.rows_map, self.columns_map = metric.reshape(-1, metric.shape[-1]), _shifted(metric)
        self.mixing = w.repeat(metric.shape[0])
        self.sigmoids = _sigmoids(q @ self.rows_map.T + b.reshape(-1), _decay(p @ self.columns_map.T))

    def gradients(self, upstream: Tensor) -> tuple[Tensor, ...]:
        """Gradients of ``(upstream * W).sum()`` with respect to ``q, p, M, b, w, c``. Uses up the sigmoids."""
        shifts, dmu, dq = self.shape
        s = self.sigmoids
        w_gradient = torch.mv(s.reshape(-1, s.shape[-1]).T, upstream.reshape(-1)).view(shifts, dmu).sum(0)
        slopes = _slopes(s, self.mixing).mul_(upstream[..., None])
        by_row, by_column = slopes.sum(1), slopes.sum(0)
        metric_gradient = (by_row.T @ self.q).view(shifts, dmu, dq).clone()
        shifted_gradient = (by_column.T @ self.p).view(shifts, dmu, dq)
        for k in range(shifts):
            metric_gradient[k] += torch.roll(shifted_gradient[k], -(k * dq // shifts), -1)
        b_gradient = by_row.sum(0).view(shifts, dmu)
        return (
            by_row @ self.rows_map,
            by_column @ self.columns_map,
            metric_gradient,
            b_gradient,
            w_gradient,
            upstream.sum(),
        )


@dataclass
class _Side:
    """The least-squares problems of one side of a batch of tiles: the fixed other side, and the target.

    Attributes:
        target: ``(T, n, m)`` weights of the ``n`` neurons of each of ``T`` tiles to their ``m`` partners.
        scale: ``(T, n, m)`` square roots of the weights of the errors, or None.
        linear: ``(U, Dq)`` map from a state to the arguments.
        offset: ``(U,)`` added to the arguments of the fitted side.
        decay: ``(T, m, U)`` of the partners.
    """

    target: Tensor
    scale: Tensor | None
    linear: Tensor
    offset: Tensor
    decay: Tensor
    mixing: Tensor
    constant: Tensor
    ridge: float

    def error(self, states: Tensor) -> Tensor:
        """``(T, n)`` squared error and ridge penalty of each neuron at ``states`` ``(T, n, Dq)``."""
        return self._error(states, self._residual(self._sigmoids(states)))

    def slopes(self, states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Error ``(T, n)``, descent direction ``(T * n, Dq)``, derivatives by the arguments ``(T * n, m, U)``."""
        sigmoids = self._sigmoids(states)
        residual = self._residual(sigmoids)
        slopes = _slopes(sigmoids, self.mixing)
        if self.scale is not None:
            slopes.mul_(self.scale[..., None])
        slopes = slopes.flatten(0, 1)
        gradient = torch.bmm(residual.flatten(0, 1)[:, None], slopes)[:, 0] @ self.linear
        return self._error(states, residual), gradient - self.ridge * states.flatten(0, 1), slopes

    def curvature(self, slopes: Tensor) -> Tensor:
        """Gauss-Newton matrices ``(T * n, Dq, Dq)``."""
        width = self.linear.shape[1]
        padded = nn.functional.pad(self.linear, (0, -width % ALIGNMENT))  # odd sizes take almost twice the time
        jacobian = (slopes.flatten(0, 1) @ padded).view(*slopes.shape[:2], -1)
        curvature = torch.bmm(jacobian.transpose(1, 2), jacobian)[:, :width, :width].contiguous()
        curvature.diagonal(dim1=1, dim2=2).add_(self.ridge)
        return curvature

    def _sigmoids(self, states: Tensor) -> Tensor:
        own = _decay(states @ self.linear.T + self.offset)
        return (own[:, :, None] * self.decay[:, None]).add_(1).reciprocal_()

    def _residual(self, sigmoids: Tensor) -> Tensor:
        residual = self.target - self.constant - sigmoids @ self.mixing
        return residual if self.scale is None else residual * self.scale

    def _error(self, states: Tensor, residual: Tensor) -> Tensor:
        return residual.square().sum(2) + self.ridge * states.square().sum(2)


def _factor(curvature: Tensor, damping: Tensor) -> Tensor:
    """Cholesky factors of damped curvatures ``(n, D, D)``; ``damping`` ``(n,)`` is relative to the mean diagonal.

    Where rounding errors left a matrix without a factor, that is zero.
    """
    diagonal = curvature.diagonal(dim1=1, dim2=2)
    diagonal.add_((damping * diagonal.mean(1) + 1e-9)[:, None])
    lower, failed = torch.linalg.cholesky_ex(curvature)
    return lower if not failed.any() else torch.where((failed == 0)[:, None, None], lower, 0.0)


def _step(factor: Tensor, gradient: Tensor) -> Tensor:
    """Solutions ``(n, D)``; zero where the matrix had no factor, or they are not finite."""
    return torch.cholesky_solve(gradient[..., None], factor)[..., 0].nan_to_num(0, 0, 0)


def _improve(side: _Side, states: Tensor, damping: Tensor, factor: Tensor | None = None) -> tuple[float, Tensor]:
    """One step for each neuron, in place, kept only where it lowers the neuron's error.

    Args:
        side: of the least-squares problems.
        states: ``(T, n, Dq)``.
        damping: ``(T, n)``, adapted unless ``factor`` is given.
        factor: of the curvature of an earlier step, to use once more; None computes it.

    Returns:
        The error, and the factor.
    """
    before, gradient, slopes = side.slopes(states)
    fresh = factor is None
    if fresh:
        factor = _factor(side.curvature(slopes), damping.flatten())
    del slopes
    moved = states + _step(factor, gradient).view_as(states)
    after = side.error(moved)
    better = after < before
    states.copy_(torch.where(better[..., None], moved, states))
    if fresh:
        damping.copy_(torch.where(better, damping * 0.3, damping * 4).clamp_(1e-7, 1e4))
    return float(torch.where(better, after, before).double().sum()), factor


def _round(side: _Side, states: Tensor, grid: Grid) -> Tensor:
    """Grid integers for states, each neuron's rounded in its own Gauss-Newton metric; never worse than nearest."""
    _, gradient, slopes = side.slopes(states)
    metric = side.curvature(slopes)
    del slopes
    factor = _factor(metric, torch.full_like(metric[:, 0, 0], 1e-3))
    rounded = grid.round_in_metric(states.flatten(0, 1) + _step(factor, gradient), metric).view(states.shape)
    nearest = grid.nearest(states)
    better = side.error(grid.values(rounded)) < side.error(grid.values(nearest))
    return torch.where(better[..., None], rounded, nearest)


class _Tiling:
    """How a matrix ``(out, in)`` lies in ``T`` tiles of one size; a shorter block has its last neuron twice."""

    def __init__(self, shape: tuple[int, int], row_blocks: int, col_blocks: int, device: torch.device) -> None:
        self._counts = (row_blocks, col_blocks)
        self._neurons = [_members(size, count).to(device) for size, count in zip(shape, self._counts)]
        self._first = [torch.diff(neurons, dim=1, prepend=neurons[:, :1] - 1) > 0 for neurons in self._neurons]

    def cut(self, matrix: Tensor) -> Tensor:
        """``(out, in)`` to ``(T, rows, columns)``."""
        rows, columns = self._neurons
        return matrix[rows[:, None, :, None], columns[None, :, None, :]].flatten(0, 1)

    def once(self) -> Tensor | None:
        """``(T, rows, columns)``: whether a pair is there for the first time; None where all are."""
        if all(first.all() for first in self._first):
            return None
        rows, columns = self._first
        return (rows[:, None, :, None] & columns[None, :, None, :]).flatten(0, 1)

    def of_rows(self, states: Tensor) -> Tensor:
        """States of output neurons ``(col_blocks, out, D)`` to ``(T, rows, D)``."""
        return states[:, self._neurons[0]].transpose(0, 1).flatten(0, 1)

    def of_columns(self, states: Tensor) -> Tensor:
        """States of input neurons ``(row_blocks, in, D)`` to ``(T, columns, D)``."""
        return states[:, self._neurons[1]].flatten(0, 1)

    def rows(self, tiles: Tensor) -> Tensor:
        """Inverse of :meth:`of_rows`."""
        return tiles.unflatten(0, self._counts).transpose(0, 1)[:, self._first[0]].contiguous()

    def columns(self, tiles: Tensor) -> Tensor:
        """Inverse of :meth:`of_columns`."""
        return tiles.unflatten(0, self._counts)[:, self._first[1]].contiguous()


def _members(size: int, count: int) -> Tensor:
    """``(count, widest)`` numbers of the neurons of each block."""
    blocks = _blocks(size, count)
    widest = max(block.stop - block.start for block in blocks)
    return torch.stack([torch.arange(block.start, block.start + widest).clamp_max(block.stop - 1) for block in blocks])


class _Fit:
    """The running fit of one matrix from one random start; the target has mean 0 and standard deviation 1.

    Tiles depend on each other through the metric alone: a chunk of them at a time goes through batched products.
    """

    def __init__(self, weight: Tensor, settings: dict[str, Any], pair_weights: Tensor | None, seed: int) -> None:
        shape, weight, device = tuple(weight.shape), weight.detach().double(), weight.device
        self.mean, self.spread = float(weight.mean()), float(weight.std(unbiased=False))
        dq, dmu, shifts = settings['dq'], settings['dmu'], settings['shifts']
        self.tiling = _Tiling(shape, settings['row_blocks'], settings['col_blocks'], device)
        self.target = self.tiling.cut(((weight - self.mean) / (self.spread or 1.0)).float())
        once = self.tiling.once()
        self.scale = None if pair_weights is None else self.tiling.cut(pair_weights)
        if once is not None:
            self.scale = once.float() if self.scale is None else self.scale * once
        self.bits = settings['state_bits']
        self.ridge = 0.03 * 4.0 ** (4 - self.bits)  # coarser grids want states that stay small
        generator = torch.Generator().manual_seed(seed)
        q = torch.randn(settings['col_blocks'], shape[0], dq, generator=generator).to(device)
        self.q = self.tiling.of_rows(q).contiguous()
        self.p = q.new_zeros(len(self.target), self.target.shape[2], dq)
        self.damping_q, self.damping_p = (q.new_full(side.shape[:2], 0.1) for side in (self.q, self.p))
        start = _random_metric(dq, dmu, shifts, 0.7 if self.bits >= 8 else 1.0, generator)
        self.metric = [parameter.to(device) for parameter in start]
        self.optimiser = torch.optim.Adam(self.metric, lr=LEARNING_RATE, betas=(0.9, 0.99), fused=True)
        self.sigmoids = self.target[0].numel() * shifts * dmu
        self.error = math.inf
        self.idle = 0

    def start_from(self, states: dict[str, Tensor]) -> None:
        """Float states of a weight like the target."""
        q, p, metric, b, w, c = (states[name].clone() for name in Sigmoid.state_names)
        self.q, self.p = self.tiling.of_rows(q).contiguous(), self.tiling.of_columns(p).contiguous()
        spread = self.spread or 1.0
        self.metric = [metric, b, w / spread, (c - self.mean) / spread]

    def sweep(self, share: float, repeats: int = 1) -> None:
        """Steps for every state, and some on the metric.

        Args:
            share: of the schedule that is done.
            repeats: steps with one curvature, and so many times the steps on the metric.
        """
        error, due = 0.0, 0.0
        learn = 0.05 <= share < 0.95
        for group in self.optimiser.param_groups:
            group['lr'] = LEARNING_RATE * (1 - share)
        each = repeats * min(MOST_METRIC_STEPS, max(METRIC_STEPS, len(self.target))) / len(self.target)
        for tiles in self._chunks(CHUNK):
            factor_p = factor_q = None
            for _ in range(repeats):
                _, factor_p = _improve(self._columns(tiles), self.p[tiles], self.damping_p[tiles], factor_p)
                found, factor_q = _improve(self._rows(tiles), self.q[tiles], self.damping_q[tiles], factor_q)
            error += found
            due += each * (tiles.stop - tiles.start)
            number = tiles.start
            while learn and due >= 1 - 1e-6:
                self._learn_metric(number)
                number = number + 1 if number + 1 < tiles.stop else tiles.start
                due -= 1
        self.idle = self.idle + 1 if error >= (1 - MIN_GAIN) ** repeats * self.error else 0
        self.error = error

    def quantised(self, advance: Callable[[], None]) -> Sigmoid:
        """Round the metric, let the states follow, then round them in turn, each given the other side."""
        metric, b, w, c = self.metric
        metric_grid = Grid.between(metric.reshape(-1, 1), METRIC_BITS)
        metric_codes = metric_grid.nearest(metric[..., None])[..., 0]
        self.metric = [metric_grid.values(metric_codes[..., None])[..., 0], b.half().float(), w, c]
        for _ in range(FOLLOWING_SWEEPS):
            self.sweep(1.0)
            advance()
        clip = CLIP.get(self.bits)
        q, p = self.tiling.rows(self.q), self.tiling.columns(self.p)
        grids = {'q': Grid.between(q, self.bits, clip), 'p': Grid.between(p, self.bits, clip)}
        codes_q, codes_p = grids['q'].nearest(self.q), grids['p'].nearest(self.p)
        for _ in range(ROUNDING_SWEEPS):
            for tiles in self._chunks(ROUNDING_CHUNK):
                codes_p[tiles] = _round(self._columns(tiles), self.p[tiles], grids['p'])
                self.p[tiles] = grids['p'].values(codes_p[tiles])
                codes_q[tiles] = _round(self._rows(tiles), self.q[tiles], grids['q'])
                self.q[tiles] = grids['q'].values(codes_q[tiles])
            advance()
        self._solve_mixing()
        codes = {'q': self.tiling.rows(codes_q), 'p': self.tiling.columns(codes_p), 'M': metric_codes}
        grids['M'] = metric_grid
        return Sigmoid(
            {key: value.cpu() for key, value in codes.items()},
            {key: grid.cpu() for key, grid in grids.items()},
            *(value.cpu() for value in (self.metric[1], w * self.spread, c * self.spread + self.mean)),
        )

    def _chunks(self, sigmoids: dict[bool, int]) -> Iterator[slice]:
        """The tiles, as many at a time as have so many sigmoids by kind of device."""
        most = max(1, sigmoids[self.target.device.type == 'cpu'] // self.sigmoids)
        for start in range(0, len(self.target), most):
            yield slice(start, min(start + most, len(self.target)))

    def _rows(self, tiles: slice) -> _Side:
        metric, b, w, c = self.metric
        decay = _decay(self.p[tiles] @ _shifted(metric).T)
        scale = None if self.scale is None else self.scale[tiles]
        linear, mixing = metric.reshape(-1, metric.shape[-1]), w.repeat(len(metric))
        return _Side(self.target[tiles], scale, linear, b.reshape(-1), decay, mixing, c, self.ridge)

    def _columns(self, tiles: slice) -> _Side:
        metric, b, w, c = self.metric
        # the offsets are in the decay, where they are added once for each row
        decay = _decay(self.q[tiles] @ metric.reshape(-1, metric.shape[-1]).T + b.reshape(-1))
        scale = None if self.scale is None else self.scale[tiles].transpose(1, 2)
        target, mixing = self.target[tiles].transpose(1, 2), w.repeat(len(metric))
        return _Side(target, scale, _shifted(metric), torch.zeros_like(b).reshape(-1), decay, mixing, c, self.ridge)

    def _solve_mixing(self) -> None:
        """The best ``w`` and ``c`` for the rounded states: a linear least-squares problem."""
        metric, b, w, c = self.metric
        gram = torch.zeros(len(w) + 1, len(w) + 1, dtype=torch.float64, device=w.device)
        right = torch.zeros(len(w) + 1, dtype=torch.float64, device=w.device)
        for number in range(len(self.target)):
            tile = _Tile(self.q[number], self.p[number], metric, b, w)
            residual = (self.target[number] - c - tile.sigmoids @ tile.mixing).reshape(-1)
            features = tile.sigmoids.view(len(residual), len(metric), len(w)).sum(1)
            features = torch.cat([features, torch.ones_like(features[:, :1])], 1)
            if self.scale is not None:
                scale = self.scale[number].reshape(-1)
                features, residual = features * scale[:, None], residual * scale
            gram += features.T @ features
            right += features.T @ residual
        gram.diagonal().add_(1e-6 * gram.diagonal().mean() + 1e-30)
        step = torch.linalg.solve(gram, right).float()
        w += step[:-1]
        c += step[-1]

    def _learn_metric(self, number: int) -> None:
        """One step by the gradients of a tile."""
        metric, b, w, c = self.metric
        tile = _Tile(self.q[number], self.p[number], metric, b, w)
        residual = c + tile.sigmoids @ tile.mixing - self.target[number]
        if self.scale is not None:
            residual *= self.scale[number].square()
        gradients = tile.gradients(residual * (2 / residual.numel()))[2:]
        for parameter, gradient in zip(self.metric, gradients):
            parameter.grad = gradient
        self.optimiser.step()
