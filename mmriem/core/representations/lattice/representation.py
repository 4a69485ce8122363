"""The ``lattice`` representation: integer states, ``W_ij = s_i * t_j * z_ij``.

Each output neuron's state is a vector of integers ``z_i``, one for each input neuron, under a row step ``s_i`` and a
column step ``t_j``. The fit looks for the lattice point that is nearest in the pullback metric ``A``: with
``A = R R^T``, ``R`` upper triangular, the error of a row is ``|(w - w') R|^2``, whose component ``j`` holds the errors
of columns up to ``j`` only. So columns are rounded one after the other, each cancelling in its component what the
earlier ones have left there (successive interference cancellation, Babai's nearest plane; the idea behind GPTQ). The
integers are entropy coded, so the steps alone decide how many bits they take.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..base import FLOAT_BITS, Costs, Work
from ..registry import Representation, register
from .codec import Lattice
from .fitter import LatticeFitter, LatticeStepper
from .live import LatticeStates
from .settings import LatticeSettings


class LatticeCosts(Costs[Lattice]):
    """Two multiplications for each weight, and products of small integers."""

    def fit_seconds(self, shape: tuple[int, int], widths: Sequence[int]) -> float:
        """Of two turns of a search."""
        rows, columns = shape
        factor = 3e-11 * sum(width**3 for width in widths)
        return (
            factor + 5e-11 * sum(rows * width**2 for width in widths) + 2.4e-7 * rows * columns + 4e-5 * columns + 0.012
        )

    def regeneration(self, shape: tuple[int, int], settings: LatticeSettings) -> list[Work]:
        """Two multiplications, by the row step and by the column step."""
        return [Work(2 * shape[0] * shape[1], (FLOAT_BITS, FLOAT_BITS))]

    def product_bits(self, encoded: Lattice) -> int:
        """Those of the integers: the steps belong to rows and columns."""
        return max(-int(encoded.codes.min()), int(encoded.codes.max())).bit_length() + 1


LATTICE = register(Representation(Lattice, LatticeStates(), LatticeCosts(), LatticeFitter, LatticeStepper))
