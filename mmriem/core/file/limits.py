"""What reading a `.riem` file may take, by its size: known, and compared, before anything is allocated.

Weights of which nothing is left but zeros take a byte for any number of them, and so a few bytes could ask for
gigabytes or for minutes. A file that is worth loading is nowhere near: the most compressed ones of the benchmark decode
to 80 bytes for each of their own. Where the model is known its own size bounds what is decoded; elsewhere
`MMRIEM_READ_LIMIT` raises all limits together.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from ..errors import RiemError, brief

VARIABLE = 'MMRIEM_READ_LIMIT'
"""Environment variable: a number by which all limits are multiplied; 1 where it is not set."""

# Each limit is a constant, which small files may use, and a multiple of the size of the file.
DECODED_BYTES = 1 << 24, 1 << 10
"""Most bytes of all decoded tensors together; what makes them takes a few times as much."""
NANOSECONDS = 1 << 28, 1 << 14
"""Most nanoseconds of one core for regenerating weights from states, see `mmriem.core.representations.base.Demand`."""
JSON_BYTES = 1 << 20, 1 << 6
"""Most bytes of the manifest as JSON, and of its keys written out."""
JSON_VALUES = 1 << 16, 1 << 1
"""Most values in the manifest; reading one takes about two microseconds and a hundred bytes."""
MOST_JSON_BYTES = 1 << 25
MOST_DECODED_BYTES = 1 << 33
"""Most bytes of all decoded tensors of any file: two thousand million float32 parameters."""
WIDEST = 16
"""Bytes of an element of the widest dtype."""


@dataclass(frozen=True)
class Limits:
    """Most of each thing that a file may ask for; see the constants of this module.

    Attributes:
        size: bytes of the file.
        factor: by which the limits are raised.
    """

    size: int
    factor: float
    decoded_bytes: int
    nanoseconds: int
    json_bytes: int
    json_values: int

    def with_model(self, shapes: Mapping[str, Sequence[int]]) -> Limits:
        """Those for a model of these shapes, which may be decoded whatever the size of its file."""
        elements = sum(math.prod(shape) for shape in shapes.values())
        return replace(self, decoded_bytes=max(self.decoded_bytes, WIDEST * elements))

    def require(self, kind: str, found: int, words: str) -> None:
        """Refuse what is above a limit.

        Args:
            kind: name of the limit, an attribute.
            found: what the file asks for.
            words: what that is, for the error.

        Raises:
            RiemError: it is above; says by how much the limits would have to be raised.
        """
        most = getattr(self, kind)
        if found > most:
            needed = math.ceil(self.factor * found / most)
            raise RiemError(
                f'expected at most {most} {words}, found {found}, which is too much for a file of {self.size} bytes; '
                f'if you trust it, set {VARIABLE}={needed}'
            )


def limits_for(size: int, factor: float | None = None) -> Limits:
    """The limits for a file of ``size`` bytes.

    Args:
        size: of the file.
        factor: raises them; that of the environment where it is not given.

    Raises:
        RiemError: the environment variable holds no positive number.
    """
    factor = _of_environment() if factor is None else factor

    def most(base: int, each: int, top: float = math.inf) -> int:
        return int(factor * min(base + each * size, top))

    return Limits(
        size=size,
        factor=factor,
        decoded_bytes=most(*DECODED_BYTES, MOST_DECODED_BYTES),
        nanoseconds=most(*NANOSECONDS),
        json_bytes=most(*JSON_BYTES, MOST_JSON_BYTES),
        json_values=most(*JSON_VALUES),
    )


def _of_environment() -> float:
    text = os.environ.get(VARIABLE) or '1'
    try:
        factor = float(text)
    except ValueError:
        factor = math.nan
    if not 0 < factor < 1e9:
        raise RiemError(f'{VARIABLE}: expected a number above 0, by which limits are raised, found {brief(text)}')
    return factor
