"""Arithmetic with the same bits on every machine, for decoding.

IEEE 754 fixes the result of one addition, multiplication or division, but not the order in which a matrix product
sums, nor the last bit of an exponential. Here products are sums of integers that float64 holds exactly, so that no
order matters, and exponentials are fixed sequences of elementwise operations.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

_LN2_HIGH = 0.693147180369123816490  # 33 leading bits of ln 2, so that n * _LN2_HIGH is exact
_LN2_LOW = 1.90821492927058770002e-10
_TAYLOR = [1.0 / math.factorial(k) for k in range(14)]


def powers_of_two(exponents: np.ndarray, octave: int) -> np.ndarray:
    """``2 ** (exponents / octave)`` in float64, of integers; ``octave`` is a power of two.

    They are products of square roots, which IEEE 754 rounds exactly.
    """
    root = 2.0
    for _ in range(octave.bit_length() - 1):
        root = math.sqrt(root)
    fractions = [1.0]
    while len(fractions) < octave:
        fractions.append(fractions[-1] * root)
    return np.ldexp(np.array(fractions)[exponents % octave], exponents // octave)


def product(left: Tensor, right: Tensor) -> Tensor:
    """``left @ right.T`` of the two matrices rounded to fixed point: ``(m, d)``, ``(n, d)`` to ``(m, n)`` float64.

    Each matrix is rounded to integers of about ``(52 - log2(d)) / 2`` bits of its largest entry, so the sum of ``d``
    products stays under ``2**53`` and every order of summation gives the same bits.
    """
    bits = (52 - max(left.shape[1] - 1, 1).bit_length()) // 2
    (left, scale_left), (right, scale_right) = _fixed_point(left, bits), _fixed_point(right, bits)
    return (left @ right.T) * (scale_left * scale_right)


def _fixed_point(matrix: Tensor, bits: int) -> tuple[Tensor, float]:
    matrix = matrix.double()
    largest = float(matrix.abs().max()) if matrix.numel() else 0.0
    exponent = math.frexp(largest)[1] - bits if largest else 0
    return (matrix * 2.0**-exponent).round(), 2.0**exponent


def exponential(x: Tensor) -> Tensor:
    """``exp(x)`` in float64, within 2 units in the last place, for ``|x| <= 700``.

    >>> import torch
    >>> float(exponential(torch.tensor(1.0, dtype=torch.float64)))
    2.7182818284590455
    """
    x = x.double()
    n = (x * (1 / math.log(2))).round()
    r = x - n * _LN2_HIGH
    r = r - n * _LN2_LOW
    total = torch.full_like(r, _TAYLOR[-1])
    for coefficient in reversed(_TAYLOR[:-1]):
        total = total * r
        total = total + coefficient
    power_of_two = ((n.to(torch.int64) + 1023) << 52).view(torch.float64)
    return total * power_of_two
