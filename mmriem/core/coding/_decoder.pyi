# the functions of _decoder.c, for type checkers

from collections.abc import Mapping
from typing import Any

from numpy import ndarray

FORMAT: Mapping[str, Any]
ENDS_ELSEWHERE: int
OTHER_LARGEST: int
TOO_LARGE: int
WIDE: int

def matrix(
    payloads: tuple[bytes, ...],
    out: ndarray,
    rows: int,
    columns: int,
    kernel_size: int,
    trellis: bool,
    prior: ndarray,
    shrinkages: ndarray,
) -> tuple[int, int, int]: ...
def vector(
    payloads: tuple[bytes, ...], out: ndarray, windows: ndarray, prior: ndarray, shrinkages: ndarray
) -> tuple[int, int, int]: ...
