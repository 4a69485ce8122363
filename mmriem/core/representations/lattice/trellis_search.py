"""Trellis-coded quantisation: the integers of a row, one after the other, take turns between two coarse grids.

Of the integers ``z`` on a fine grid, the even ones are one quantiser, the odd ones another, each with twice the fine
step. Which of them holds next follows from the integers so far: half of the magnitude is coded, ``m = |z| // 2``, and
its parity leads from one of eight states to another. So a row of integers costs what numbers on the coarse grid cost,
and a search over all paths of states (Viterbi) finds vectors that lie closer than rounding to that grid: Marcellin and
Fischer, "Trellis coded quantization of memoryless and Gauss-Markov sources", 1990. The subsets are symmetric about
zero, ``{0, 4, 8, ...}``, ``{2, 6, ...}``, ``{1, 5, ...}`` and ``{3, 7, ...}`` with either sign, so that a path does not
depend on signs.

Each path of the search has rounded its own integers, so it leaves its own errors for later columns to cancel.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ...coding.trellis import NEXT, STATES
from . import native

PRICE = 0.3
"""Price of a bit in squared fine steps: the search weighs bits against the error."""
LEVELS = 64
"""Number of indices whose bits are estimated; larger ones count as the last."""
LARGEST = 1 << 20
"""Greatest magnitude that the search gives."""
_TABLE_FLOOR = 0.01
_MOST_BITS = 30.0


def prices(values: np.ndarray) -> np.ndarray:
    """What each ``m`` costs in the search, ``(2, LEVELS)`` float32, for even and odd integers.

    Its bits are those of a memoryless code for ``values``, the weights in fine steps, and one for the sign.
    """
    nearest = np.minimum(np.rint(np.abs(values)), 2 * LEVELS + 2).astype(np.int64)
    counts = np.bincount(nearest.reshape(-1), minlength=2 * LEVELS + 3) + _TABLE_FLOOR
    counts[0] *= 2  # as all others it then counts a cell on either side of zero
    levels = np.arange(LEVELS)
    shares = []
    for odd in (0, 1):
        middle = 2 * levels + odd
        share = counts[middle] + 0.5 * (counts[np.abs(middle - 1)] + counts[middle + 1])
        if not odd:
            share[0] /= 2
        shares.append(share / share.sum())
    bits = np.minimum(-np.log2((shares[0] + shares[1]) / 2), _MOST_BITS)
    signs = np.ones((2, LEVELS))
    signs[0, 0] = 0
    return (PRICE * (bits + signs)).astype(np.float32)


class Columns(NamedTuple):
    """What the search has to know of consecutive columns; all are float32.

    Attributes:
        factor: ``(columns, columns)``, unit upper triangular: what an error leaves to later columns. None: nothing.
        steps: the fine ones, ``(columns,)``.
        pivots: by which errors count, ``(columns,)``.
        table: of :func:`prices`.
    """

    factor: np.ndarray | None
    steps: np.ndarray
    pivots: np.ndarray
    table: np.ndarray


def search(
    weight: np.ndarray, target: np.ndarray, columns: Columns, states: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The path of least distortion and bits through consecutive columns of each row.

    Args:
        weight: ``(rows, columns)`` float32.
        target: the same with what the columns before these have left to cancel.
        columns: of the matrix.
        states: where each row begins, ``(rows,)`` uint8; changed to where it ends.

    Returns:
        The integers as float32, and the distortion of each row, float64.
    """
    codes = np.empty_like(weight)
    errors = np.zeros(len(weight))
    if native.module is not None:
        native.module.search(weight, target, *columns, states, codes, errors)
    else:
        _search(weight, target, columns, states, codes, errors)
    return codes, errors


def _search(
    weight: np.ndarray, target: np.ndarray, known: Columns, states: np.ndarray, codes: np.ndarray, errors: np.ndarray
) -> None:
    factor, steps, pivots, table = known
    rows, columns = weight.shape
    every = np.arange(rows)
    wanted = np.repeat(target[None], STATES if factor is not None else 1, 0)
    cost = np.full((STATES, rows), np.inf)
    cost[states, every] = 0
    made = np.zeros((columns, STATES, rows), np.float32)
    origins = np.zeros((columns, STATES, rows), np.uint8)
    for column in range(columns):
        unit = (np.float64(steps[column]) * np.float64(pivots[column])) ** 2
        scaled = np.broadcast_to(wanted[:, :, column] / steps[column], (STATES, rows))
        after = np.full((STATES, rows), np.inf)
        for state in range(STATES):
            for parity in (0, 1):
                code, price = _nearest(scaled[state], state & 1, parity, table[state & 1])
                total = cost[state] + price.astype(np.float64) * unit
                to = NEXT[state, parity]
                better = total < after[to]
                after[to] = np.where(better, total, after[to])
                made[column, to] = np.where(better, code, made[column, to])
                origins[column, to] = np.where(better, state, origins[column, to])
        cost = after
        if factor is not None:
            error = weight[:, column] - made[column] * steps[column]
            wanted = wanted[origins[column], every]
            wanted[:, :, column + 1 :] += factor[column, column + 1 :] * error[:, :, None]
    best = cost.argmin(0)
    states[:] = best
    for column in reversed(range(columns)):
        codes[:, column] = made[column, best, every]
        best = origins[column, best, every]
    left = target.copy()
    for column in range(columns):
        rounded = codes[:, column] * steps[column]
        errors += ((left[:, column] - rounded).astype(np.float64) * np.float64(pivots[column])) ** 2
        if factor is not None:
            left[:, column + 1 :] += factor[column, column + 1 :] * (weight[:, column] - rounded)[:, None]


def _nearest(values: np.ndarray, odd: int, parity: int, table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The integer of that quantiser and parity that costs least, the nearest or the one below, and its cost."""
    magnitudes = np.minimum(np.abs(values), np.float32(LARGEST))
    first = np.float32(2 * parity + odd)
    count = np.maximum(np.floor((magnitudes - first) * np.float32(0.25) + np.float32(0.5)), np.float32(0))
    near = 4 * count + first
    below = np.where(count > 0, near - 4, near)
    costs = []
    for size in (near, below):
        level = np.minimum(size * np.float32(0.5), np.float32(LEVELS - 1)).astype(np.int64)
        costs.append((magnitudes - size) ** 2 + table[level])
    is_below = costs[1] < costs[0]
    return np.copysign(np.where(is_below, below, near), values), np.where(is_below, costs[1], costs[0])
