"""Rounding of both sides of a low-rank matrix in turn, each in the metric that the other one induces."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..grid import Grid
from .codec import Bilinear

ORDINARY_EXPONENT = 6
"""Weights of a root mean square of ``4**-6`` to ``4**6`` have states whose grids are normal float16 numbers."""
REFINEMENTS = 2
"""How often both sides are rounded again, each given the other one."""


def rounded(
    weight: Tensor, q: Tensor, p: Tensor, bits: int, metric: Tensor | None, row_weights: Tensor, exponent: int
) -> Bilinear:
    """States near ``q`` and ``p`` on grids of ``bits`` bits, for a weight in the unit of the exponent."""
    q_grid, p_grid = Grid.between(q, bits), Grid.between(p, bits)
    q_codes, p_codes = q_grid.nearest(q), p_grid.nearest(p)
    weighted = weight if metric is None else weight @ metric.to(weight)
    for _ in range(REFINEMENTS):
        # given q, the best p solves (q^T g q) p_j = q^T g w_j, whatever the input metric
        q = q_grid.values(q_codes)
        through = q.T * row_weights
        p_codes = _round_solution(through.double() @ q.double(), through @ weight, p_grid)
        p = p_grid.values(p_codes)
        if metric is None:
            gram, right_side = p.T.double() @ p.double(), p.T @ weighted.T
        else:  # states are large where the metric is small: float32 does not do
            gram, right_side = p.T.double() @ metric @ p.double(), p.T.double() @ weighted.T.double()
        q_codes = _round_solution(gram, right_side, q_grid)
    return Bilinear(q_codes.cpu(), p_codes.cpu(), q_grid.cpu(), p_grid.cpu(), exponent)


def exponent_of(weight: Tensor) -> int:
    """Binary exponent of the unit in which the states of ``weight`` are about 1; 0 where float16 holds them as well."""
    power = float(weight.double().square().mean())
    exponent = round(math.log2(power) / 4) if power else 0
    return exponent if abs(exponent) > ORDINARY_EXPONENT else 0


def weights_of_rows(output_weights: Tensor | None, weight: Tensor) -> Tensor:
    """Weights of the rows, of mean 1; none so small that the states of its row become noise."""
    if output_weights is None:
        return torch.ones(len(weight), device=weight.device)
    weights = output_weights.detach().to(weight.device, torch.float64)
    return (weights / weights.mean().clamp_min(1e-300)).clamp_min(1e-6).float()


def _round_solution(gram: Tensor, right_side: Tensor, grid: Grid) -> Tensor:
    """Grid integers ``(n, rank)`` near the solution of ``gram x = right_side[:, n]``, rounded in ``gram``.

    In float64, where the slight damping makes even a rank-deficient ``gram`` positive definite.
    """
    damped = gram.double()
    damped.diagonal().add_(1e-6 * gram.diagonal().mean() + 1e-30)
    solution = torch.cholesky_solve(right_side.double(), torch.linalg.cholesky(damped)).T
    return grid.round_in_metric(solution, damped[None])
