"""The ``bilinear`` representation: ``W_ij = q_i . p_j``, low rank, the SVD family.

With the identity as metric the states are the truncated singular value decomposition, the best approximation of
that rank. With an input metric ``A = L L^T`` and output weights ``g`` it is the best one in the weighted norm: the
SVD of ``diag(g)^(1/2) W L``, mapped back. Both state matrices are then rounded to the grid in turn, each in the
metric that the other one induces, so that rounding errors compensate each other.
"""

from __future__ import annotations

from ..base import Costs, Work
from ..registry import Representation, register
from .codec import Bilinear
from .fitter import BilinearFitter
from .live import BilinearStates
from .settings import BilinearSettings


class BilinearCosts(Costs[Bilinear]):
    """A product of states for each weight, or two thin products for each input."""

    def regeneration(self, shape: tuple[int, int], settings: BilinearSettings) -> list[Work]:
        bits = settings.state_bits
        return [Work(shape[0] * shape[1] * settings.rank, (bits, bits))]

    def product(self, encoded: Bilinear, positions: int, activation_bits: int, grouped: bool = False) -> list[Work]:
        if grouped:
            return super().product(encoded, positions, activation_bits, grouped)
        settings = encoded.settings
        bits = (settings.state_bits, activation_bits)
        return [Work(positions * neurons * settings.rank, bits) for neurons in encoded.shape[::-1]]


BILINEAR = register(Representation(Bilinear, BilinearStates(), BilinearCosts(), BilinearFitter))
