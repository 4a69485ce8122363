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
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

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
SWEEPS = 40
"""Alternating sweeps at effort 1."""
METRIC_STEPS = 8
"""Adam steps on the metric in a sweep."""
ROUNDING_SWEEPS = 4
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
        sweeps = max(4, round(SWEEPS * effort))
        trial = max(3, sweeps // 5)
        runs = [_Fit(weight, settings, pair_weights, seed + number) for number in range(max(1, seeds))]
        total = trial * (len(runs) - 1) + sweeps + ROUNDING_SWEEPS + 2
        done = 0

        def advance() -> None:
            nonlocal done
            done += 1
            if progress:
                progress(done / total)

        if len(runs) > 1:
            for run in runs:
                for number in range(trial):
                    run.sweep(number / sweeps)
                    advance()
        best = min(runs, key=lambda run: run.error)
        for number in range(trial if len(runs) > 1 else 0, sweeps):
            best.sweep(number / sweeps)
            advance()
        return best.quantised(advance)

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
    """The least-squares problems of one tile's rows: states to fit, the fixed other side, and the target.

    Attributes:
        target: ``(n, m)`` weights of ``n`` neurons to their ``m`` partners.
        scale: ``(n, m)`` square roots of the weights of the errors, or None.
        linear: ``(U, Dq)`` map from a state to the arguments.
        offset: ``(U,)`` added to the arguments of the fitted side.
        decay: ``(m, U)`` of the partners.
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
        """``(n,)`` squared error and ridge penalty of each neuron."""
        residual = self._residual(_sigmoids(states @ self.linear.T + self.offset, self.decay))
        return residual.square().sum(1) + self.ridge * states.square().sum(1)

    def linearised(self, states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Error ``(n,)``, gradient ``(n, Dq)`` and Gauss-Newton matrix ``(n, Dq, Dq)`` at ``states``."""
        sigmoids = _sigmoids(states @ self.linear.T + self.offset, self.decay)
        residual = self._residual(sigmoids)
        slopes = _slopes(sigmoids, self.mixing)
        if self.scale is not None:
            slopes.mul_(self.scale[..., None])
        jacobian = (slopes.view(-1, slopes.shape[-1]) @ self.linear).view(*residual.shape, -1)
        transposed = jacobian.transpose(1, 2)
        curvature = transposed @ jacobian
        curvature.diagonal(dim1=1, dim2=2).add_(self.ridge)
        gradient = (transposed @ residual[..., None])[..., 0] - self.ridge * states
        error = residual.square().sum(1) + self.ridge * states.square().sum(1)
        return error, gradient, curvature

    def _residual(self, sigmoids: Tensor) -> Tensor:
        residual = self.target - self.constant - sigmoids @ self.mixing
        return residual if self.scale is None else residual * self.scale


def _damped_step(curvature: Tensor, gradient: Tensor, damping: Tensor) -> Tensor:
    """Levenberg-Marquardt step ``(n, Dq)``; zero where the matrix cannot be factorised."""
    damped = curvature.clone()
    mean = curvature.diagonal(dim1=1, dim2=2).mean(1)
    damped.diagonal(dim1=1, dim2=2).add_((damping * mean + 1e-9)[:, None])
    lower, failed = torch.linalg.cholesky_ex(damped)
    step = torch.cholesky_solve(gradient[..., None], lower)[..., 0]
    return torch.where((failed == 0)[:, None], step, 0.0).nan_to_num(0, 0, 0)


def _improve(side: _Side, states: Tensor, damping: Tensor) -> float:
    """One step for each neuron, in place, kept only where it lowers the neuron's error. Returns the error."""
    before, gradient, curvature = side.linearised(states)
    moved = states + _damped_step(curvature, gradient, damping)
    after = side.error(moved)
    better = after < before
    states.copy_(torch.where(better[:, None], moved, states))
    damping.copy_(torch.where(better, damping * 0.3, damping * 4).clamp_(1e-7, 1e4))
    return float(torch.where(better, after, before).double().sum())


def _round(side: _Side, states: Tensor, grid: Grid) -> Tensor:
    """Grid integers for states, each neuron's rounded in its own Gauss-Newton metric; never worse than nearest."""
    _, gradient, curvature = side.linearised(states)
    damping = torch.full((len(states),), 1e-3, device=states.device)
    metric = curvature.clone()
    metric.diagonal(dim1=1, dim2=2).add_((1e-3 * curvature.diagonal(dim1=1, dim2=2).mean(1) + 1e-9)[:, None])
    rounded = grid.round_in_metric(states + _damped_step(curvature, gradient, damping), metric)
    nearest = grid.nearest(states)
    better = side.error(grid.values(rounded)) < side.error(grid.values(nearest))
    return torch.where(better[:, None], rounded, nearest)


class _Fit:
    """The running fit of one matrix from one random start; the target has mean 0 and standard deviation 1."""

    def __init__(self, weight: Tensor, settings: dict[str, Any], pair_weights: Tensor | None, seed: int) -> None:
        weight, device = weight.detach().double(), weight.device
        self.mean, self.spread = float(weight.mean()), float(weight.std(unbiased=False))
        self.target = ((weight - self.mean) / (self.spread or 1.0)).float()
        self.target_t = self.target.T.contiguous()
        self.scale = pair_weights
        self.scale_t = None if pair_weights is None else pair_weights.T.contiguous()
        self.bits = settings['state_bits']
        self.ridge = 0.03 * 4.0 ** (4 - self.bits)  # coarser grids want states that stay small
        generator = torch.Generator().manual_seed(seed)
        out, inputs = weight.shape
        dq, dmu, shifts = settings['dq'], settings['dmu'], settings['shifts']
        self.q = torch.randn(settings['col_blocks'], out, dq, generator=generator).to(device)
        self.p = torch.zeros(settings['row_blocks'], inputs, dq, device=device)
        self.damping_q = torch.full(self.q.shape[:2], 0.1, device=device)
        self.damping_p = torch.full(self.p.shape[:2], 0.1, device=device)
        start = _random_metric(dq, dmu, shifts, 0.7 if self.bits >= 8 else 1.0, generator)
        self.metric = [parameter.to(device) for parameter in start]
        self.optimiser = torch.optim.Adam(self.metric, lr=3e-3, betas=(0.9, 0.99), fused=True)
        self.error = math.inf

    def start_from(self, states: dict[str, Tensor]) -> None:
        """Float states of a weight like the target."""
        self.q, self.p, metric, b, w, c = (states[name].clone() for name in Sigmoid.state_names)
        spread = self.spread or 1.0
        self.metric = [metric, b, w / spread, (c - self.mean) / spread]

    def sweep(self, share: float) -> None:
        """One step for every state of every tile, and some on the metric; ``share`` of the schedule is done."""
        error = 0.0
        learn = 0.05 <= share < 0.95
        for group in self.optimiser.param_groups:
            group['lr'] = 3e-3 * (1 - share)
        count = self.q.shape[0] * self.p.shape[0]
        due = 0.0
        for i, rows, j, columns in _tiles(self.q, self.p):
            _improve(self._columns(i, rows, j, columns), self.p[i, columns], self.damping_p[i, columns])
            error += _improve(self._rows(i, rows, j, columns), self.q[j, rows], self.damping_q[j, rows])
            due += METRIC_STEPS / count
            while learn and due >= 1 - 1e-6:
                self._learn_metric(i, rows, j, columns)
                due -= 1
        self.error = error

    def quantised(self, advance: Any) -> Sigmoid:
        """Round the metric, let the states follow, then round them in turn, each given the other side."""
        metric, b, w, c = self.metric
        metric_grid = Grid.between(metric.reshape(-1, 1), METRIC_BITS)
        metric_codes = metric_grid.nearest(metric[..., None])[..., 0]
        self.metric = [metric_grid.values(metric_codes[..., None])[..., 0], b.half().float(), w, c]
        for _ in range(2):
            self.sweep(1.0)
            advance()
        clip = CLIP.get(self.bits)
        grids = {'q': Grid.between(self.q, self.bits, clip), 'p': Grid.between(self.p, self.bits, clip)}
        codes = {'q': grids['q'].nearest(self.q), 'p': grids['p'].nearest(self.p)}
        for _ in range(ROUNDING_SWEEPS):
            for i, rows, j, columns in _tiles(self.q, self.p):
                codes['p'][i, columns] = _round(self._columns(i, rows, j, columns), self.p[i, columns], grids['p'])
                self.p[i, columns] = grids['p'].values(codes['p'][i, columns])
                codes['q'][j, rows] = _round(self._rows(i, rows, j, columns), self.q[j, rows], grids['q'])
                self.q[j, rows] = grids['q'].values(codes['q'][j, rows])
            advance()
        self._solve_mixing()
        codes['M'], grids['M'] = metric_codes, metric_grid
        return Sigmoid(
            {key: value.cpu() for key, value in codes.items()},
            {key: grid.cpu() for key, grid in grids.items()},
            *(value.cpu() for value in (self.metric[1], w * self.spread, c * self.spread + self.mean)),
        )

    def _rows(self, i: int, rows: slice, j: int, columns: slice) -> _Side:
        metric, b, w, c = self.metric
        decay = _decay(self.p[i, columns] @ _shifted(metric).T)
        scale = None if self.scale is None else self.scale[rows, columns]
        linear = metric.reshape(-1, metric.shape[-1])
        return _Side(
            self.target[rows, columns], scale, linear, b.reshape(-1), decay, w.repeat(len(metric)), c, self.ridge
        )

    def _columns(self, i: int, rows: slice, j: int, columns: slice) -> _Side:
        metric, b, w, c = self.metric
        decay = _decay(self.q[j, rows] @ metric.reshape(-1, metric.shape[-1]).T)
        scale = None if self.scale_t is None else self.scale_t[columns, rows]
        target = self.target_t[columns, rows]
        return _Side(target, scale, _shifted(metric), b.reshape(-1), decay, w.repeat(len(metric)), c, self.ridge)

    def _solve_mixing(self) -> None:
        """The best ``w`` and ``c`` for the rounded states: a linear least-squares problem."""
        metric, b, w, c = self.metric
        gram = torch.zeros(len(w) + 1, len(w) + 1, dtype=torch.float64, device=w.device)
        right = torch.zeros(len(w) + 1, dtype=torch.float64, device=w.device)
        for i, rows, j, columns in _tiles(self.q, self.p):
            tile = _Tile(self.q[j, rows], self.p[i, columns], metric, b, w)
            residual = (self.target[rows, columns] - c - tile.sigmoids @ tile.mixing).reshape(-1)
            features = tile.sigmoids.view(len(residual), len(metric), len(w)).sum(1)
            features = torch.cat([features, torch.ones_like(features[:, :1])], 1)
            if self.scale is not None:
                scale = self.scale[rows, columns].reshape(-1)
                features, residual = features * scale[:, None], residual * scale
            gram += features.T @ features
            right += features.T @ residual
        gram.diagonal().add_(1e-6 * gram.diagonal().mean() + 1e-30)
        step = torch.linalg.solve(gram, right).float()
        w += step[:-1]
        c += step[-1]

    def _learn_metric(self, i: int, rows: slice, j: int, columns: slice) -> None:
        metric, b, w, c = self.metric
        tile = _Tile(self.q[j, rows], self.p[i, columns], metric, b, w)
        residual = c + tile.sigmoids @ tile.mixing - self.target[rows, columns]
        if self.scale is not None:
            residual *= self.scale[rows, columns].square()
        gradients = tile.gradients(residual * (2 / residual.numel()))[2:]
        for parameter, gradient in zip(self.metric, gradients):
            parameter.grad = gradient
        self.optimiser.step()
