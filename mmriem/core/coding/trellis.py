"""The trellis that integers may follow, which the decoder and the search have in common.

In each state half of the magnitudes are allowed, the even or the odd ones, so half of a magnitude is coded, its
*index* ``|z| // 2``. Whether that is even or odd leads to the next state.
"""

from __future__ import annotations

import numpy as np

NEXT = np.array([[0, 2], [7, 5], [1, 3], [6, 4], [2, 0], [5, 7], [3, 1], [4, 6]], np.uint8)
"""The state after an index that is even, and after one that is odd: ``(states, 2)``. Odd states hold odd magnitudes.
Each row of a matrix begins in state 0."""
STATES = len(NEXT)
"""Number of states."""


def magnitudes_of(indices: np.ndarray) -> np.ndarray:
    """Magnitudes ``|z|`` of the integers that indices, ``(rows, columns)`` int64, stand for."""
    state = np.zeros(len(indices), np.uint8)
    parities = _columns(indices & 1)
    odd = np.empty_like(parities)
    for column, parity in enumerate(parities):
        odd[column] = state & 1
        state = NEXT[state, parity]
    return 2 * indices + odd.T


def indices_of(magnitudes: np.ndarray) -> np.ndarray | None:
    """Indices of the magnitudes of integers ``(rows, columns)``; None where they follow no path of states."""
    state = np.zeros(len(magnitudes), np.uint8)
    found = magnitudes >> 1
    for parity, odd in zip(_columns(found & 1), _columns(magnitudes & 1)):
        if ((state & 1) != odd).any():
            return None
        state = NEXT[state, parity]
    return found


def _columns(bits: np.ndarray) -> np.ndarray:
    """The transpose, uint8, in memory one column after the other."""
    return np.ascontiguousarray(bits.astype(np.uint8).T)
