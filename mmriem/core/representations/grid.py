"""Uniform quantisation of state columns, rounding in a metric, and packing of the integers.

The grid is the paper's: each state column is divided uniformly between its minimum and maximum into
``2**bits`` levels. What goes beyond the paper is the rounding: instead of the nearest level, states are
rounded one coordinate after the other and each rounding error is compensated by the coordinates still to come
(successive interference cancellation, Babai's nearest plane) in the metric of the fit.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

STATE_BITS = (2, 8)
"""Fewest and most bits of a quantised state."""
BLOCK = 64
"""Columns of states that are rounded before their errors are passed on to all later columns, in one product."""


@dataclass(frozen=True)
class Grid:
    """Levels ``low + step * z`` with ``z`` in ``0 .. 2**bits - 1``, one grid for each state column.

    ``low`` and ``step`` are float32 ``(D,)`` and exactly representable in float16, as they are stored.
    """

    low: Tensor
    step: Tensor
    bits: int

    @classmethod
    def between(cls, states: Tensor, bits: int, clip: float | None = None) -> Grid:
        """The grid between the minimum and the maximum of each column of ``states``, ``(..., D)``.

        ``clip`` bounds the range to that many standard deviations around the mean: at few bits, finer levels
        are worth more than reaching the rare extremes.
        """
        columns = states.reshape(-1, states.shape[-1]).float()
        low, high = columns.amin(0), columns.amax(0)
        if clip is not None:
            mean, spread = columns.mean(0), columns.std(0, unbiased=False)
            low, high = torch.maximum(low, mean - clip * spread), torch.minimum(high, mean + clip * spread)
        low = low.half().float()
        step = ((high - low) / (2**bits - 1)).clamp_min(2.0**-24).half().float()
        return cls(low, step, bits)

    def cpu(self) -> Grid:
        """The same grid on the CPU."""
        return Grid(self.low.cpu(), self.step.cpu(), self.bits)

    def nearest(self, states: Tensor) -> Tensor:
        """Integers of the nearest levels: ``(..., D)`` uint8."""
        return self._clamp(((states - self.low) / self.step).round()).to(torch.uint8)

    def values(self, codes: Tensor) -> Tensor:
        """Levels of the integers: ``(..., D)`` float32, rounded once from the exact value."""
        return (self.low.double() + self.step.double() * codes.double()).float()

    def round_in_metric(self, target: Tensor, metric: Tensor) -> Tensor:
        """Integers near the minimum of ``(x - target)^T metric (x - target)`` over the grid, for each row.

        Args:
            target: ``(rows, D)`` float32.
            metric: ``(rows, D, D)`` float32, symmetric positive definite, or ``(1, D, D)`` for all rows.

        Returns:
            ``(rows, D)`` uint8. Where the metric cannot be factorised, the nearest level.
        """
        scaled = metric * self.step[:, None] * self.step
        lower, failed = torch.linalg.cholesky_ex(scaled)
        position = (target - self.low) / self.step
        codes, error, pull = (torch.zeros_like(position) for _ in range(3))
        for stop in range(position.shape[1], 0, -BLOCK):
            start = max(0, stop - BLOCK)
            for d in range(stop - 1, start - 1, -1):
                within = _row_products(error[:, d + 1 : stop], lower[:, d + 1 : stop, d : d + 1])[:, 0]
                wanted = position[:, d] + (pull[:, d] + within) / lower[:, d, d]
                codes[:, d] = self._clamp(wanted.round())
                error[:, d] = position[:, d] - codes[:, d]
            pull[:, :start] += _row_products(error[:, start:stop], lower[:, start:stop, :start])
        codes = torch.where((failed == 0)[:, None], codes, self._clamp(position.round()))
        return codes.nan_to_num(0).to(torch.uint8)

    def _clamp(self, codes: Tensor) -> Tensor:
        return codes.clamp_(0, 2**self.bits - 1)


def _row_products(rows: Tensor, matrices: Tensor) -> Tensor:
    """``rows[n] @ matrices[n]``: ``(n, k)``, ``(n, k, m)`` or ``(1, k, m)`` to ``(n, m)``."""
    if len(matrices) == 1:
        return rows @ matrices[0]
    return torch.bmm(rows[:, None], matrices)[:, 0]
