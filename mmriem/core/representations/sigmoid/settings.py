"""Settings of matrices of the paper's form, and the numbers and bits that they stand for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from ...coding.packing import packed_bytes
from ...errors import RiemError
from ..grid import STATE_BITS
from ..settings import CodecSettings, Key

NAME = 'sigmoid'
METRIC_BITS = 8
"""Bits of a quantised number of the metric."""
MAX_ARGUMENTS = 1 << 26
"""Most sigmoid arguments of the neurons on one side of a tile."""


@dataclass(frozen=True)
class SigmoidSettings(CodecSettings):
    """Sizes of states, metric and tiles.

    Attributes:
        dq: neuronal dimension ``Dq``.
        dmu: inner dimension ``Dmu`` of the metric.
        shifts: relative vectors ``K``.
        row_blocks, col_blocks: tiles along the rows and the columns.
        state_bits: bits of a quantised state.
    """

    representation: ClassVar[str] = NAME
    keys: ClassVar[Mapping[str, Key]] = {
        'dq': Key(1, 1 << 14),
        'dmu': Key(1, 1 << 12),
        'shifts': Key(1, 64),
        'row_blocks': Key(1, 1 << 16),
        'col_blocks': Key(1, 1 << 16),
        'state_bits': Key(*STATE_BITS),
    }

    dq: int
    dmu: int
    shifts: int
    row_blocks: int
    col_blocks: int
    state_bits: int

    def state_rows(self, shape: tuple[int, int]) -> int:
        """State vectors of all neurons."""
        return self.col_blocks * shape[0] + self.row_blocks * shape[1]

    def parameter_count(self, shape: tuple[int, int]) -> int:
        """Number of stored parameters, as the paper counts them.

        >>> one_tile = SigmoidSettings(dq=52, dmu=14, shifts=6, row_blocks=1, col_blocks=1, state_bits=8)
        >>> one_tile.parameter_count((128, 256))
        24435
        """
        metric = self.shifts * (self.dq * self.dmu + self.dmu)
        return self.state_rows(shape) * self.dq + metric + self.dmu + 1

    def payload_bits(self, shape: tuple[int, int]) -> int:
        """Exact size of the payload in bits: states, metric, offsets, and the grids."""
        states = packed_bytes(self.col_blocks * shape[0] * self.dq, self.state_bits)
        states += packed_bytes(self.row_blocks * shape[1] * self.dq, self.state_bits)
        grids, units = 2 * (4 * self.dq + 2), self.shifts * self.dmu
        return 8 * (states + grids + units * self.dq + 2 * units + 4 * self.dmu + 4)

    def widest(self, shape: tuple[int, int]) -> int:
        """Most neurons on one side of a tile."""
        return max(math.ceil(neurons / count) for count, neurons in zip((self.row_blocks, self.col_blocks), shape))

    def check_shape(self, shape: tuple[int, int]) -> None:
        """Raise :class:`RiemError` unless they are for a matrix of this shape."""
        blocks = (self.row_blocks, self.col_blocks)
        if any(count > neurons for count, neurons in zip(blocks, shape)):
            raise RiemError(f"settings of 'sigmoid': more blocks than neurons in a weight matrix of shape {shape}")
        if (arguments := self.widest(shape) * self.shifts * self.dmu) > MAX_ARGUMENTS:
            raise RiemError(
                f"settings of 'sigmoid': expected at most {MAX_ARGUMENTS} arguments in a tile, found {arguments}"
            )
