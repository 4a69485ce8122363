"""Settings of low-rank matrices, and the bits that their payloads take."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Union

from ...coding.packing import packed_bytes
from ...errors import RiemError
from ..grid import STATE_BITS
from ..settings import CodecSettings, Key

NAME = 'bilinear'
MAX_RANK = 1 << 16
"""The highest rank of a file."""
EXPONENTS = (-80, 80)
"""The least and the greatest exponent of a file."""
CANDIDATE_BITS = (4, 5, 6, 7, 8)
"""Bits of a quantised state that are tried where a budget leaves them open."""


@dataclass(frozen=True)
class BilinearSettings(CodecSettings):
    """Rank, bits of a state, and the exponent of the unit ``2**exponent`` that the grids are in."""

    representation: ClassVar[str] = NAME
    keys: ClassVar[Mapping[str, Key]] = {
        'rank': Key(1, MAX_RANK),
        'state_bits': Key(*STATE_BITS),
        'exponent': Key(*EXPONENTS, usual=0),
    }

    rank: int
    state_bits: int
    exponent: int = 0


@dataclass(frozen=True)
class BilinearBudget:
    """Bits of a payload, whose rank and bits of a state the fit chooses."""

    bits: int

    def __post_init__(self) -> None:
        if self.bits < 1:
            raise RiemError(f"budget of 'bilinear': expected at least 1 bit, found {self.bits}")


Configuration = Union[BilinearSettings, BilinearBudget]
"""What a fit is asked for."""


def candidates(shape: tuple[int, int], configuration: Configuration) -> list[tuple[int, int, int]]:
    """Rank, state bits and payload bits of each size that the configuration leaves open."""
    if isinstance(configuration, BilinearSettings):
        ranks = [(configuration.rank, configuration.state_bits)]
    else:
        ranks = [(highest_rank(shape, configuration.bits, bits), bits) for bits in CANDIDATE_BITS]
    return [(rank, bits, payload_bits(shape, rank, bits)) for rank, bits in ranks if rank]


def payload_bits(shape: tuple[int, int], rank: int, bits: int) -> int:
    """Exact size of a payload in bits: states and grids."""
    return 8 * (4 * 2 * rank + sum(packed_bytes(neurons * rank, bits) for neurons in shape))


def highest_rank(shape: tuple[int, int], budget: float, bits: int) -> int:
    """The highest rank whose payload fits a budget in bits, with states of ``bits`` bits; 0 where none does."""
    rank = min(int(budget / (sum(shape) * bits + 64)) + 1, min(shape))
    while rank > 0 and payload_bits(shape, rank, bits) > budget:
        rank -= 1
    return rank
