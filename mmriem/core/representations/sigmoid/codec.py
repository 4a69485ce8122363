"""Matrices of the paper's form as a file holds them: quantised states under a quantised metric."""

from __future__ import annotations

from torch import Tensor

from ...coding.packing import PayloadReader, float_bytes, pack
from ..base import Codec, Demand
from ..grid import Grid
from .regeneration import STATE_NAMES, evaluate
from .settings import METRIC_BITS, NAME, SigmoidSettings

ARGUMENT_BYTES = 64
"""Bytes of an argument and of what its exponential takes, in float64."""
ARGUMENT_NANOSECONDS = 40
"""Nanoseconds of an argument and its exponential."""
TILE_NANOSECONDS = 250_000
"""Nanoseconds of a tile, however small."""
UNIT_NANOSECONDS = 12_000
"""Nanoseconds of each sigmoid of a weight in a tile, however small; in a large one a weight takes one."""


class Sigmoid(Codec):
    """Quantised states and metric, and what stays float.

    Attributes:
        codes: integers, uint8: ``q`` ``(col_blocks, out, Dq)``, a state of each output neuron for each block of
            columns; ``p`` ``(row_blocks, in, Dq)``, one of each input neuron for each block of rows; ``M``
            ``(K, Dmu, Dq)``.
        grids: of each of them.
        floats: offsets ``b``, mixing weights ``w`` and the constant ``c``.
    """

    name = NAME
    settings_type = SigmoidSettings

    def __init__(self, codes: dict[str, Tensor], grids: dict[str, Grid], b: Tensor, w: Tensor, c: Tensor) -> None:
        self.shape = (codes['q'].shape[1], codes['p'].shape[1])
        self.codes, self.grids, self.floats = codes, grids, {'b': b, 'w': w, 'c': c}

    @property
    def symbols(self) -> int:
        return sum(codes.numel() for codes in self.codes.values())

    @property
    def settings(self) -> SigmoidSettings:
        (col_blocks, _, dq), (row_blocks, _, _) = self.codes['q'].shape, self.codes['p'].shape
        shifts, dmu, _ = self.codes['M'].shape
        return SigmoidSettings(dq, dmu, shifts, row_blocks, col_blocks, self.grids['q'].bits)

    def to_payload(self) -> bytes:
        b, w, c = self.floats.values()
        grids = [float_bytes(x, '<f2') for key in 'qpM' for x in (self.grids[key].low, self.grids[key].step)]
        floats = [float_bytes(b, '<f2'), float_bytes(w, '<f4'), float_bytes(c, '<f4')]
        return b''.join(grids + floats + [pack(self.codes[key], self.grids[key].bits) for key in 'qpM'])

    @classmethod
    def demand(cls, shape: tuple[int, int], settings: SigmoidSettings) -> Demand:
        settings.check_shape(shape)
        tiles, units = settings.row_blocks * settings.col_blocks, settings.shifts * settings.dmu
        rows, size = settings.state_rows(shape), settings.payload_bits(shape) // 8
        return Demand(
            symbols=(rows + units) * settings.dq,
            least=size,
            most=size,
            memory=ARGUMENT_BYTES * settings.widest(shape) * units,
            nanoseconds=shape[0] * shape[1] * units
            + rows * units * (settings.dq + ARGUMENT_NANOSECONDS)
            + tiles * (TILE_NANOSECONDS + units * UNIT_NANOSECONDS),
        )

    @classmethod
    def from_payload(cls, shape: tuple[int, int], settings: SigmoidSettings, payload: bytes) -> Sigmoid:
        settings.check_shape(shape)
        reader = PayloadReader(payload, settings.payload_bits(shape) // 8)
        dq, dmu, shifts, bits = settings.dq, settings.dmu, settings.shifts, settings.state_bits
        grids = {
            key: Grid(reader.floats('<f2', (columns,)), reader.floats('<f2', (columns,)), levels)
            for key, columns, levels in (('q', dq, bits), ('p', dq, bits), ('M', 1, METRIC_BITS))
        }
        b, w, c = reader.floats('<f2', (shifts, dmu)), reader.floats('<f4', (dmu,)), reader.floats('<f4', ())
        codes = {
            'q': reader.integers(bits, (settings.col_blocks, shape[0], dq)),
            'p': reader.integers(bits, (settings.row_blocks, shape[1], dq)),
            'M': reader.integers(METRIC_BITS, (shifts, dmu, dq)),
        }
        return cls(codes, grids, b, w, c)

    def states(self) -> dict[str, Tensor]:
        return {**{key: self.grids[key].values(self.codes[key]) for key in 'qp'}, 'M': self.metric(), **self.floats}

    def metric(self) -> Tensor:
        """``M``, ``(K, Dmu, Dq)`` float32."""
        return self.grids['M'].values(self.codes['M'][..., None])[..., 0]

    def decode(self) -> Tensor:
        states = self.states()
        return evaluate(*(states[name] for name in STATE_NAMES))
