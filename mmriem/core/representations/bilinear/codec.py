"""Low-rank matrices as a file holds them: ``W_ij = q_i . p_j`` with quantised states."""

from __future__ import annotations

from torch import Tensor

from ...coding import exact
from ...coding.packing import PayloadReader, float_bytes, pack
from ..base import Codec, Demand
from ..grid import Grid
from .settings import NAME, BilinearSettings, payload_bits

PRODUCTS = 12
"""Multiply-adds of a core in a nanosecond, in a product of float64 matrices."""


class Bilinear(Codec):
    """Quantised states ``q`` ``(out, rank)`` and ``p`` ``(in, rank)`` with a grid each.

    The grids, float16 in the file, hold the states in units of ``2**exponent``, so that weights of any scale fit.

    Attributes:
        codes: integers of ``q`` and of ``p``, uint8.
        grids: of both.
        exponent: of the unit.
    """

    name = NAME
    settings_type = BilinearSettings

    def __init__(self, q_codes: Tensor, p_codes: Tensor, q_grid: Grid, p_grid: Grid, exponent: int) -> None:
        self.shape = (q_codes.shape[0], p_codes.shape[0])
        self.codes = {'q': q_codes, 'p': p_codes}
        self.grids = {'q': q_grid, 'p': p_grid}
        self.exponent = exponent

    @property
    def symbols(self) -> int:
        return sum(codes.numel() for codes in self.codes.values())

    @property
    def settings(self) -> BilinearSettings:
        return BilinearSettings(self.codes['q'].shape[1], self.grids['q'].bits, self.exponent)

    def to_payload(self) -> bytes:
        grids = [float_bytes(x, '<f2') for grid in self.grids.values() for x in (grid.low, grid.step)]
        return b''.join(grids + [pack(codes, self.grids[name].bits) for name, codes in self.codes.items()])

    @classmethod
    def demand(cls, shape: tuple[int, int], settings: BilinearSettings) -> Demand:
        rank, size = settings.rank, payload_bits(shape, settings.rank, settings.state_bits) // 8
        return Demand(sum(shape) * rank, size, size, nanoseconds=shape[0] * shape[1] * rank // PRODUCTS)

    @classmethod
    def from_payload(cls, shape: tuple[int, int], settings: BilinearSettings, payload: bytes) -> Bilinear:
        rank, bits = settings.rank, settings.state_bits
        reader = PayloadReader(payload, payload_bits(shape, rank, bits) // 8)
        low_q, step_q, low_p, step_p = (reader.floats('<f2', (rank,)) for _ in range(4))
        q_codes, p_codes = (reader.integers(bits, (neurons, rank)) for neurons in shape)
        return cls(q_codes, p_codes, Grid(low_q, step_q, bits), Grid(low_p, step_p, bits), settings.exponent)

    def states(self) -> dict[str, Tensor]:
        unit = 2.0**self.exponent
        return {name: grid.values(self.codes[name]) * unit for name, grid in self.grids.items()}

    def decode(self) -> Tensor:
        states = self.states()
        return exact.product(states['q'], states['p']).float()
