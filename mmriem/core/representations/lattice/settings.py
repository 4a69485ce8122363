"""Settings of matrices of integers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from ...coding.streams import LANES
from ...errors import RiemError
from ..settings import CodecSettings, Key
from .exponents import FINE_OCTAVE, OCTAVE

NAME = 'lattice'
MAX_KERNEL_SIZE = 1 << 12
"""Largest kernel size of a file."""


@dataclass(frozen=True)
class LatticeSettings(CodecSettings):
    """How the integers and the exponents of the steps are coded.

    Attributes:
        kernel_size: neighbouring columns that belong to one input channel; ``period`` in a file.
        octave: exponents of the steps for each power of two.
        lanes: streams that the integers are dealt to.
        trellis: whether the integers follow paths of the trellis.
    """

    representation: ClassVar[str] = NAME
    keys: ClassVar[Mapping[str, Key]] = {
        'kernel_size': Key(1, MAX_KERNEL_SIZE, name='period'),
        'octave': Key(FINE_OCTAVE, FINE_OCTAVE, usual=OCTAVE),
        'lanes': Key(LANES, LANES, usual=1),
        'trellis': Key(1, 1, usual=0),
    }

    kernel_size: int = 1
    octave: int = OCTAVE
    lanes: int = 1
    trellis: bool = False


@dataclass(frozen=True)
class LatticeBudget:
    """Bits of a payload, whose step the fit chooses, and the kernel size of the weight."""

    bits: int
    kernel_size: int = 1

    def __post_init__(self) -> None:
        if self.bits < 1 or not 1 <= self.kernel_size <= MAX_KERNEL_SIZE:
            raise RiemError(
                f"budget of 'lattice': expected at least 1 bit and a kernel size of 1 to {MAX_KERNEL_SIZE}, "
                f'found {self.bits} bits and {self.kernel_size}'
            )
