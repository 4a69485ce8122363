# the functions of _search.c, for type checkers

from collections.abc import Mapping
from typing import Any

from numpy import ndarray

FORMAT: Mapping[str, Any]

def search(
    weight: ndarray,
    target: ndarray,
    factor: ndarray | None,
    steps: ndarray,
    pivots: ndarray,
    table: ndarray,
    states: ndarray,
    codes: ndarray,
    errors: ndarray,
) -> None: ...
def dequantise(out: ndarray, rows: ndarray, columns: ndarray, codes: ndarray) -> None: ...
