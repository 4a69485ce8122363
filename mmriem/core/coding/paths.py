"""The states of the trellis that integers may follow, which the decoder and the search have in common."""

from __future__ import annotations

import numpy as np

NEXT = np.array([[0, 2], [7, 5], [1, 3], [6, 4], [2, 0], [5, 7], [3, 1], [4, 6]], np.uint8)
"""The state after an ``m`` that is even, and odd; odd integers hold in odd states. Rows begin in state 0."""
STATES = len(NEXT)


def sizes(halves: np.ndarray) -> np.ndarray:
    """Magnitudes ``|z|`` of the integers that ``m``, ``(rows, columns)`` int64, stand for."""
    state = np.zeros(len(halves), np.uint8)
    parities = _columns(halves & 1)
    odd = np.empty_like(parities)
    for column, parity in enumerate(parities):
        odd[column] = state & 1
        state = NEXT[state, parity]
    return 2 * halves + odd.T


def halves(magnitudes: np.ndarray) -> np.ndarray | None:
    """``m`` for the magnitudes of integers ``(rows, columns)``; None where they follow no path of states."""
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
