"""The step that meets a budget: of one weight, or of all weights of a network."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ...errors import RiemError
from ...execution.tasks import Progress
from ..base import Fitter, Stepper
from . import native
from .codec import LEAST_BITS, Lattice
from .problem import Problem
from .settings import NAME, LatticeBudget

SEARCH_TURNS = 24
"""Steps that a fit to a budget of its own tries."""
SEARCHED = 1.005
"""Ratio of two steps, one too small and one that fits the budget, between which no other one is tried."""


@dataclass(frozen=True)
class LatticeFitter(Fitter[Lattice, LatticeBudget]):
    """The smallest step whose payload fits, integers being rounded one by one."""

    name: ClassVar[str] = NAME

    def configure(
        self, shape: tuple[int, int], bits: float, kernel_size: int = 1, smaller: LatticeBudget | None = None
    ) -> LatticeBudget | None:
        return None if bits < LEAST_BITS else LatticeBudget(int(bits), kernel_size)

    def planned_bits(self, shape: tuple[int, int], configuration: LatticeBudget) -> int:
        return configuration.bits

    def fit(
        self,
        weight: Tensor,
        configuration: LatticeBudget,
        *,
        input_metric: Tensor | Sequence[Tensor] | None = None,
        output_weights: Tensor | None = None,
        progress: Progress | None = None,
    ) -> Lattice:
        problem = Problem.of(weight, input_metric, output_weights, configuration.kernel_size)
        step, best, low, high = problem.spread or 1.0, None, None, None
        for turn in range(SEARCH_TURNS):
            found = problem.solve(step)[0]
            if found.payload_bits() <= configuration.bits:
                best, high = found, step
            else:
                low = step
            if progress:
                progress((turn + 1) / SEARCH_TURNS)
            if low and high and high / low < SEARCHED:
                break
            step = math.sqrt(low * high) if low and high else step * (0.5 if low is None else 2.0)
        if best is None:
            raise RiemError(f'a budget of {configuration.bits} bits is too small for a matrix of {tuple(weight.shape)}')
        return best


@dataclass(frozen=True)
class LatticeStepper(Stepper):
    """Problems whose step is given.

    Attributes:
        trellis: whether integers are sought along the paths of a trellis: smaller files at the same accuracy, but
            integers that training cannot move.
    """

    trellis: bool = True

    def problem(
        self, weight: Tensor, metric: Sequence[Tensor] | None, output_weights: Tensor | None, kernel_size: int
    ) -> Problem:
        return Problem.of(weight, metric, output_weights, kernel_size, self.trellis)

    def useful_threads(self, threads: int) -> int:
        """One, where integers are rounded one by one or searched in Python: small steps hold the interpreter lock."""
        return threads if self.trellis and native.module is not None else 1
