"""The ``sigmoid`` representation: the paper's neuronal states under a Riemannian metric.

    W_ij = c + sum_{m=1..Dmu} w_m * sum_{k=0..K-1} sigmoid((M_k (q_i + shift_k(p_j)) + b_k)_m)

with ``M_k`` ``(Dmu, Dq)``, ``b_k`` ``(Dmu,)`` and ``shift_k(p) = concat(p[s:], p[:s])``, ``s = k * Dq // K``; ``K``
is 6 in the paper ("Data-free Neural Representation Compression with Riemannian Neural Dynamics", ICML 2024).

The argument splits into ``u_i + v_j``, so with ``a_i = exp(-u_i)`` and ``b_j = exp(-v_j)`` once for each neuron, a pair
costs one multiplication, one addition and one division: ``sigmoid(u_i + v_j) = 1 / (1 + a_i b_j)``.

Two things go beyond the paper. Matrices larger than a tile give a neuron one state for each block of its partners,
all under one metric, which keeps the cost of a weight constant; a matrix of one tile is exactly the formula above.
And the fit alternates Levenberg-Marquardt steps: with ``p`` fixed each ``q_i`` is a small least-squares problem of its
own, and the other way round. docs/experiments.md holds the measurements.
"""

from __future__ import annotations

from ..base import FLOAT_BITS, Costs, Work
from ..registry import Representation, register
from .codec import Sigmoid
from .fitter import SigmoidFitter
from .live import SigmoidStates
from .settings import METRIC_BITS, SigmoidSettings


class SigmoidCosts(Costs[Sigmoid]):
    """Sigmoids for each weight."""

    def regeneration(self, shape: tuple[int, int], settings: SigmoidSettings) -> list[Work]:
        """The arguments of each neuron, and for each weight ``K * Dmu`` sigmoids and as many multiply-adds."""
        units = settings.shifts * settings.dmu
        arguments = Work(settings.state_rows(shape) * settings.dq * units, (settings.state_bits, METRIC_BITS))
        return [arguments, Work(2 * shape[0] * shape[1] * units, (FLOAT_BITS, FLOAT_BITS))]


SIGMOID = register(Representation(Sigmoid, SigmoidStates(), SigmoidCosts(), SigmoidFitter))
