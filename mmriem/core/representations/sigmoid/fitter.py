"""The fit of the paper's form to a weight: sizes that meet a budget, random starts, the best of them rounded."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ...execution.tasks import Progress
from ..base import Fitter
from ..checks import check_weight
from .codec import Sigmoid
from .fit import FOLLOWING_SWEEPS, KEPT, PATIENCE, ROUNDING_SWEEPS, SWEEPS, Fit, schedule_of, weights_of_pairs
from .settings import NAME, SigmoidSettings

TILE = (64, 64)
"""Most rows and columns of a tile. Larger tiles cost more for each weight and fit no better."""
SHIFTS = 6
"""Relative vectors of the paper."""


@dataclass(frozen=True)
class SigmoidFitter(Fitter[Sigmoid, SigmoidSettings]):
    """Alternating Levenberg-Marquardt, then rounding in the metric of the fit.

    Attributes:
        state_bits: bits of a quantised state; 0: by the budget.
        shifts: relative vectors.
        dq, dmu: dimensions; 0: the largest ``Dq`` that fits, and ``Dmu`` to match.
        row_blocks, col_blocks: tiles along the rows and the columns; 0: of at most ``TILE``.
        seed: the first random start; the same seed gives the same bytes.
        seeds: random starts, the worse ones culled early.
        effort: scales the number of optimisation steps.
    """

    name: ClassVar[str] = NAME

    state_bits: int = 0
    shifts: int = SHIFTS
    dq: int = 0
    dmu: int = 0
    row_blocks: int = 0
    col_blocks: int = 0
    seed: int = 0
    seeds: int = 1
    effort: float = 1.0

    def configure(
        self, shape: tuple[int, int], bits: float, kernel_size: int = 1, smaller: SigmoidSettings | None = None
    ) -> SigmoidSettings | None:
        """The largest ``Dq``, and ``Dmu`` to match, whose payload fits ``bits``."""
        state_bits = (smaller.state_bits if smaller else self.state_bits) or _state_bits(bits / math.prod(shape))
        tiles = (
            self.row_blocks or math.ceil(shape[0] / TILE[0]),
            self.col_blocks or math.ceil(shape[1] / TILE[1]),
        )
        rows = tiles[1] * shape[0] + tiles[0] * shape[1]
        dq = self.dq or int(bits / (state_bits * rows)) + 1
        while dq >= 1:
            settings = SigmoidSettings(dq, self.dmu or _matching_dmu(dq, self.shifts), self.shifts, *tiles, state_bits)
            if settings.payload_bits(shape) <= bits:
                settings.check_shape(shape)
                return settings
            if self.dq:
                return None
            dq -= 1
        return None

    def planned_bits(self, shape: tuple[int, int], configuration: SigmoidSettings) -> int:
        return configuration.payload_bits(shape)

    def fit(
        self,
        weight: Tensor,
        configuration: SigmoidSettings,
        *,
        input_metric: Tensor | None = None,
        output_weights: Tensor | None = None,
        progress: Progress | None = None,
    ) -> Sigmoid:
        """Of the input metric the diagonal is used: the states of a tile see only its own columns."""
        check_weight(weight, input_metric, output_weights)
        shape = (weight.shape[0], weight.shape[1])
        configuration.check_shape(shape)
        pair_weights = weights_of_pairs(shape, input_metric, output_weights, weight.device)
        schedule = schedule_of(max(4, round(SWEEPS * self.effort)))
        runs = [Fit(weight, configuration, pair_weights, self.seed + number) for number in range(max(1, self.seeds))]
        first, second = -(-len(schedule) // 4), -(-len(schedule) // 2)
        parts = [(0, first, len(runs)), (first, second, min(KEPT, len(runs))), (second, len(schedule), 1)]
        total = sum((stop - start) * kept for start, stop, kept in parts) + ROUNDING_SWEEPS + FOLLOWING_SWEEPS
        done = 0

        def advance(count: int = 1) -> None:
            nonlocal done
            done += count
            if progress:
                progress(done / total)

        for start, stop, kept in parts:
            runs = sorted(runs, key=lambda run: run.error)[:kept]
            for run in runs:
                for number in range(start, stop):
                    if run.idle < PATIENCE:
                        run.sweep(*schedule[number])
                    advance()
        return Sigmoid(*runs[0].quantised(advance))


def _state_bits(bits_per_weight: float) -> int:
    """State bits at which about as many states as weights fit the budget, where the fit is best for its bytes."""
    return min(8, max(4, math.ceil(bits_per_weight / 1.02)))


def _matching_dmu(dq: int, shifts: int) -> int:
    """An even ``Dmu`` with about 1.7 sigmoids for each state dimension: fewer leave directions unused."""
    return 2 * max(1, round(1.7 * dq / shifts / 2))
