"""Row and column steps of a lattice on a grid of exponents, and their bytes."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from ...coding import entropy
from ...errors import RiemError

OCTAVE = 4
"""Row and column steps for each octave: they are powers of ``2 ** (1 / OCTAVE)``."""
FINE_OCTAVE = 32
"""Row and column steps for each octave where training has moved them off the grid of ``OCTAVE``: rounding changes them
by a hundredth at most."""
ON_GRID = 1e-3
"""Most by which an exponent of a step on a grid is off an integer, for float32 holds the steps."""
MAX_SYMBOL = 1 << 20
"""Greatest magnitude that a weight is rounded to."""


def half_way(factor: float) -> float:
    """About the square root: a power of two, so that dividing by it changes no bit."""
    return 2.0 ** round(math.log2(abs(factor)) / 2)


def logarithms(steps: Tensor) -> np.ndarray:
    """Binary logarithms of magnitudes; of a step of 0, whose integers are 0 too, any one of the others."""
    magnitudes = steps.abs()
    largest = float(magnitudes.max()) or 1.0
    return torch.where(magnitudes > 0, magnitudes, largest).log2().numpy()


def is_on_grid(logarithms: np.ndarray, octave: int) -> bool:
    exponents = (logarithms - logarithms[0]) * octave
    return float(np.abs(exponents - exponents.round()).max()) < ON_GRID


def on_grid(logarithms: np.ndarray, octave: int) -> tuple[float, np.ndarray]:
    """A common step, and exponents that are 0 in the mean."""
    exponents = np.round((logarithms - logarithms[0]) * octave)
    middle = np.round(exponents.mean())
    return 2.0 ** (logarithms[0] + middle / octave), (exponents - middle).astype(np.int32)


def pack_exponents(exponents: np.ndarray) -> bytes:
    return entropy.encode_vector(exponents) if exponents.any() else b''


def unpack_exponents(data: bytes, count: int, octave: int) -> np.ndarray:
    if not data:
        return np.zeros(count, np.int32)
    exponents = entropy.decode_vector(data, count)
    if np.abs(exponents).max() > 100 * octave:
        raise RiemError(f'lattice: expected exponents of {-100 * octave} to {100 * octave}, found others')
    return exponents
