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
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...coding import entropy, paths, streams
from ...coding.exact import powers_of_two
from ...errors import RiemError
from ...execution.tasks import Progress
from ..base import FLOAT_BITS, Demand, Representation, StepProblem, Work, check_settings, register
from ..blocks import EVERYTHING, Block, State, spans
from . import native
from .states import (
    FINE_OCTAVE,
    MAX_SYMBOL,
    OCTAVE,
    MetricBlocks,
    half_way,
    is_on_grid,
    logarithms,
    on_grid,
    pack_exponents,
    unpack_exponents,
)

MAX_PERIOD = 1 << 12
MANY = 1 << 17
"""Integers from which on a matrix is coded in ``entropy.LANES`` streams, which cost it next to nothing."""
DECODED = 1 << 16
"""Weights that are computed at a time, in float64, so that these stay in the cache."""
MOST_BYTES = 8
"""Of a coded integer, however unlikely it is."""
SEARCH_TURNS = 24
"""Steps that a fit to a budget of its own tries."""
_HEADER = struct.Struct('<fII')  # step, bytes of the row exponents, bytes of the column exponents


@register
class Lattice(Representation):
    """Integers ``(out, in)``, a step, and exponents of row and column steps."""

    name = 'lattice'
    state_names = ('z', 'row', 'column')
    integer_states = ('z',)
    has_steps = True

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
        self._lanes = lanes or (streams.LANES if codes.size >= MANY else 1)
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
        from .problem import Problem

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

    @classmethod
    def problem(
        cls,
        weight: Tensor,
        metric: Sequence[Tensor] | None,
        output_weights: Tensor | None,
        kernel_size: int,
        trellis: bool,
    ) -> StepProblem:
        from .problem import Problem

        return Problem.of(weight, metric, output_weights, kernel_size, trellis)

    @classmethod
    def useful_threads(cls, threads: int, trellis: bool) -> int:
        """Rounded one by one, in small steps that hold the interpreter lock, two threads take longer than one."""
        return threads if trellis and native.module is not None else 1

    @classmethod
    def fit_seconds(cls, shape: tuple[int, int], widths: Sequence[int]) -> float:
        """Of two turns of a search."""
        rows, columns = shape
        factor = 3e-11 * sum(width**3 for width in widths)
        return (
            factor + 5e-11 * sum(rows * width**2 for width in widths) + 2.4e-7 * rows * columns + 4e-5 * columns + 0.012
        )

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
            rows, columns = pack_exponents(self._rows), pack_exponents(self._columns)
            header = _HEADER.pack(self._step, len(rows), len(columns))
            self._payload = (
                header + rows + columns + entropy.encode(self._codes, self._period, self._lanes, self._is_path)
            )
        return self._payload

    @classmethod
    def demand(cls, shape: tuple[int, int], settings: dict[str, Any]) -> Demand:
        others = {'octave': (FINE_OCTAVE, FINE_OCTAVE), 'lanes': (streams.LANES, streams.LANES), 'trellis': (1, 1)}
        present = {name: bound for name, bound in others.items() if isinstance(settings, dict) and name in settings}
        check_settings(cls.name, settings, {'period': (1, MAX_PERIOD), **present})
        if shape[1] % settings['period']:
            raise RiemError(f'lattice: expected a divisor of {shape[1]} columns as period, found {settings["period"]}')
        symbols = shape[0] * shape[1]
        return Demand(symbols, _HEADER.size + 1, _HEADER.size + MOST_BYTES * (symbols + sum(shape) + streams.LANES * 8))

    @classmethod
    def from_payload(cls, shape: tuple[int, int], settings: dict[str, Any], payload: bytes) -> Lattice:
        cls.demand(shape, settings)
        octave, lanes, is_path = settings.get('octave', OCTAVE), settings.get('lanes', 1), 'trellis' in settings
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
            unpack_exponents(payload[_HEADER.size : first], shape[0], octave),
            unpack_exponents(payload[first:second], shape[1], octave),
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
        shared = half_way(self._step)
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
        logs = [logarithms(x) for x in steps]
        octave = OCTAVE if all(is_on_grid(x, OCTAVE) for x in logs) else FINE_OCTAVE
        (row_step, rows), (column_step, columns) = (on_grid(x, octave) for x in logs)
        is_path = paths.halves(np.abs(codes)) is not None
        return cls(codes, row_step * column_step, rows, columns, period, octave, is_path=is_path)

    @classmethod
    def regenerate(cls, states: dict[str, Tensor]) -> Tensor:
        return states['row'][:, None] * states['column'] * states['z']

    @classmethod
    def random_states(cls, shape: tuple[int, int], settings: dict[str, Any]) -> dict[str, Tensor]:
        return {'z': torch.randn(shape).mul_(2).round_(), 'row': torch.ones(shape[0]), 'column': torch.ones(shape[1])}

    @classmethod
    def scaled_states(cls, states: dict[str, Tensor], gain: float, shift: float) -> dict[str, Tensor]:
        shared = half_way(gain)
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
