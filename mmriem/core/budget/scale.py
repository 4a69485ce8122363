"""One scale for the steps of all weights: how a budget is shared out.

At high rates the distortion of a weight matrix falls by ``2 ln 2`` of itself for each further bit per weight, so the
sum of all distortions is least, for a given sum of bits, where each single weight adds the same: where the step of a
matrix is inversely proportional to the square root of its sensitivity, the distortion of a unit error of one weight.
So the steps of all matrices have one common factor, the scale, and a budget is met by a search for that one number.

The sensitivities are measured on procedural images and hold for small errors, which makes extreme ones unsafe: steps
lie between that optimum (``TEMPER = 1``) and the one that makes relative errors of all weights equal (0).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Protocol, TypeVar

from ..errors import RiemError

TEMPER = 0.75
"""Power of the relative sensitivity in a step: 1 trusts it, 0 ignores it."""
CLOSE_ENOUGH = 0.99
"""Least share of a budget whose use counts as having met it."""
TURNS = 12
"""Passes over all weights that a search may take."""
FLATTEST = 2.0**-6
"""Least slope of size or error over scale, both logarithms, that a search expects: that of a weight of 64 bits."""
FINEST = 2.0**-12
"""Smallest scale of a search: steps of that many standard deviations of the weights."""
COARSEST = 2.0**300
"""Largest scale: one for weights that the outputs hardly feel, next to which those of the others have small steps."""
S = TypeVar('S')
"""All weights, solved at one scale."""


class Sensitive(Protocol):
    """What a step of a weight depends on, as :class:`mmriem.core.representations.base.StepProblem` has it."""

    @property
    def spread(self) -> float:
        """Standard deviation of the weights, or what stands for it."""

    @property
    def log_sensitivity(self) -> float:
        """Natural logarithm of the distortion that a unit error of one weight does, on average."""


def relative_steps(problems: Mapping[str, Sensitive], measured: Mapping[str, bool]) -> dict[str, float]:
    """The step of each weight at scale 1, in the unit of the weight.

    A weight without a measured metric is taken as averagely sensitive.
    """
    spreads = {name: problem.spread or 1.0 for name, problem in problems.items()}
    excess = {
        name: -0.5 * problem.log_sensitivity - math.log(spreads[name])
        for name, problem in problems.items()
        if measured[name]
    }
    average = sum(excess.values()) / max(1, len(excess))
    return {name: spread * math.exp(TEMPER * (excess.get(name, average) - average)) for name, spread in spreads.items()}


def search(
    solve: Callable[[float], S],
    measure: Callable[[S], float],
    target: float,
    start: float = 1.0,
    falls: bool = True,
) -> tuple[float, S]:
    """The scale at which ``measure`` is at most ``target`` and at least ``CLOSE_ENOUGH`` of it.

    Args:
        solve: all solutions at a scale.
        measure: size or error of solutions, monotonous in the scale; at most the target where that can be.
        target: what is asked for.
        start: first guess of the scale.
        falls: whether the measure falls with the scale, as bytes do, or rises, as errors do.

    Raises:
        RiemError: the target is out of reach.
    """
    sign = 1.0 if falls else -1.0
    scale, slope = start, -0.5 * sign  # of log2(measure) over log2(scale), around 1 bit per weight
    low, high = None, None  # measured (log2 scale, log2 measure): too much and not too much
    previous = None
    best: tuple[float, S] | None = None
    for _ in range(TURNS):
        solutions = solve(scale)
        value = measure(solutions)
        point = (math.log2(scale), math.log2(max(value, 1e-300)))
        if value <= target:
            high, best = point, (scale, solutions)
            if value >= CLOSE_ENOUGH * target or scale <= FINEST:
                break
        else:
            low = point
        wanted = math.log2(target * (1 + CLOSE_ENOUGH) / 2)
        if low and high and low[0] != high[0]:
            slope = (high[1] - low[1]) / (high[0] - low[0]) or slope
            step = min(max((wanted - low[1]) / slope / (high[0] - low[0]), 0.02), 0.98) * (high[0] - low[0])
            exponent = low[0] + step
        else:
            if previous and previous[0] != point[0]:  # at many bits per weight it is flatter
                measured = (point[1] - previous[1]) / (point[0] - previous[0])
                slope = -sign * max(-sign * measured, FLATTEST)
            exponent = point[0] + min(max((wanted - point[1]) / slope, -3.0), 3.0)
        previous = point
        scale = max(2.0**exponent, FINEST)
        if scale > COARSEST:
            break
    if best is None:
        raise RiemError(f'budget: expected a target that some step can reach, found {target:.4g}; ask for more')
    return best
