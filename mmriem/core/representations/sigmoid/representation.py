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
from typing import Any

import torch
from torch import Tensor

from ...coding.packing import PayloadReader, float_bytes, pack, packed_bytes
from ...errors import RiemError
from ...execution.tasks import Progress
from ..base import FLOAT_BITS, Demand, Representation, Work, check_settings, check_weight, register
from ..blocks import EVERYTHING, Block, PackedTensor, State, spans
from ..grid import STATE_BITS, Grid
from .fit import (
    FOLLOWING_SWEEPS,
    KEPT,
    METRIC_BITS,
    PATIENCE,
    ROUNDING_SWEEPS,
    SWEEPS,
    Fit,
    _schedule,
    weights_of_pairs,
)
from .regeneration import STATE_NAMES, Regenerate, _blocks, evaluate, random_metric

TILE = (64, 64)
"""Most rows and columns of a tile. Larger tiles cost more for each weight and fit no better."""
MAX_ARGUMENTS = 1 << 26
"""Most sigmoid arguments of the neurons on one side of a tile."""
ARGUMENT_BYTES = 64
"""Of an argument and of what its exponential takes, in float64."""
ARGUMENT_NANOSECONDS = 40
"""Of an exponential."""
TILE_NANOSECONDS = 250_000
"""Of a tile, however small."""
UNIT_NANOSECONDS = 12_000
"""Of each sigmoid of a weight in a tile, however small; in a large one a weight takes one."""
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
    state_names = STATE_NAMES

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
        pair_weights = weights_of_pairs(tuple(weight.shape), input_metric, output_weights, weight.device)
        schedule = _schedule(max(4, round(SWEEPS * effort)))
        runs = [Fit(weight, settings, pair_weights, seed + number) for number in range(max(1, seeds))]
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
        return cls(*runs[0].quantised(advance))

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
    def demand(cls, shape: tuple[int, int], settings: dict[str, Any]) -> Demand:
        _check_shape(shape, settings)
        tiles = settings['row_blocks'] * settings['col_blocks']
        dq, units, size = settings['dq'], settings['shifts'] * settings['dmu'], payload_bits(shape, settings) // 8
        rows, weights = _state_rows(shape, settings), shape[0] * shape[1]
        return Demand(
            symbols=rows * dq + units * dq,
            least=size,
            most=size,
            memory=ARGUMENT_BYTES * _widest(shape, settings) * units,
            nanoseconds=weights * units
            + rows * units * (dq + ARGUMENT_NANOSECONDS)
            + tiles * (TILE_NANOSECONDS + units * UNIT_NANOSECONDS),
        )

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
        return evaluate(*(states[name] for name in self.state_names))

    @classmethod
    def from_states(cls, states: dict[str, Tensor], settings: dict[str, Any] | None, period: int = 1) -> Sigmoid:
        (shifts, dmu, dq), q, p = states['M'].shape, states['q'], states['p']
        bits = settings['state_bits'] if settings else STATE_BITS[1]
        own = dict(dq=dq, dmu=dmu, shifts=shifts, row_blocks=len(p), col_blocks=len(q), state_bits=bits)
        fit = Fit(cls.regenerate(states), own, None, 0)
        fit.start_from(states)
        return cls(*fit.quantised(lambda: None))

    @classmethod
    def regenerate(cls, states: dict[str, Tensor]) -> Tensor:
        """The same bits as :meth:`decode`, differentiable; memory grows with one tile, not with the matrix."""
        return Regenerate.apply(*(states[name] for name in cls.state_names))

    @classmethod
    def random_states(cls, shape: tuple[int, int], settings: dict[str, Any]) -> dict[str, Tensor]:
        dq, dmu, shifts = settings['dq'], settings['dmu'], settings['shifts']
        metric, b, w, c = random_metric(dq, dmu, shifts)
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
    if (arguments := _widest(shape, settings) * settings['shifts'] * settings['dmu']) > MAX_ARGUMENTS:
        raise RiemError(
            f"settings of 'sigmoid': expected at most {MAX_ARGUMENTS} arguments in a tile, found {arguments}"
        )


def _widest(shape: tuple[int, int], settings: dict[str, Any]) -> int:
    """Most neurons on one side of a tile."""
    blocks = (settings['row_blocks'], settings['col_blocks'])
    return max(math.ceil(neurons / count) for count, neurons in zip(blocks, shape))


def _state_rows(shape: tuple[int, int], settings: dict[str, Any]) -> int:
    return settings['col_blocks'] * shape[0] + settings['row_blocks'] * shape[1]


def _state_bits(bits_per_weight: float) -> int:
    """State bits at which about as many states as weights fit the budget, where the fit is best for its bytes."""
    return min(8, max(4, math.ceil(bits_per_weight / 1.02)))


def _matching_dmu(dq: int, shifts: int) -> int:
    """An even ``Dmu`` with about 1.7 sigmoids for each state dimension: fewer leave directions unused."""
    return 2 * max(1, round(1.7 * dq / shifts / 2))
