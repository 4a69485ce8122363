"""The closed-form fit of low-rank matrices: a singular value decomposition in the metric, then rounding."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ...errors import RiemError
from ...execution.tasks import Progress
from ..base import Fitter
from ..checks import check_weight
from .codec import Bilinear
from .rounding import exponent_of, rounded, weights_of_rows
from .settings import (
    CANDIDATE_BITS,
    NAME,
    BilinearBudget,
    BilinearSettings,
    Configuration,
    candidates,
    highest_rank,
    payload_bits,
)

DAMPINGS = (1e-6, 1e-5, 1e-4, 1e-3)
"""Shares of the identity that are added to a metric of unit mean: the least one is taken that makes up for what
float32 sums have left below zero."""


@dataclass(frozen=True)
class BilinearFitter(Fitter[Bilinear, Configuration]):
    """The best low-rank approximation in the metric.

    Attributes:
        state_bits: bits of a quantised state; 0: tried out by the fit.
        rank: 0: the highest that fits.
    """

    name: ClassVar[str] = NAME

    state_bits: int = 0
    rank: int = 0

    def configure(
        self, shape: tuple[int, int], bits: float, kernel_size: int = 1, smaller: Configuration | None = None
    ) -> Configuration | None:
        bits = int(bits)
        if not self.state_bits:
            return BilinearBudget(bits) if highest_rank(shape, bits, min(CANDIDATE_BITS)) else None
        rank = min(self.rank or highest_rank(shape, bits, self.state_bits), min(shape))
        if rank < 1 or payload_bits(shape, rank, self.state_bits) > bits:
            return None
        return BilinearSettings(rank, self.state_bits)

    def planned_bits(self, shape: tuple[int, int], configuration: Configuration) -> int:
        return max(bits for _, _, bits in candidates(shape, configuration))

    def fit(
        self,
        weight: Tensor,
        configuration: Configuration,
        *,
        input_metric: Tensor | None = None,
        output_weights: Tensor | None = None,
        progress: Progress | None = None,
    ) -> Bilinear:
        check_weight(weight, input_metric, output_weights)
        sizes = candidates((weight.shape[0], weight.shape[1]), configuration)
        if isinstance(configuration, BilinearBudget) and not sizes:
            raise RiemError(f'a budget of {configuration.bits} bits is too small for a matrix of {tuple(weight.shape)}')
        exponent = exponent_of(weight)
        weight = (weight.detach().double() * 4.0**-exponent).float()
        metric = _of_unit_mean(input_metric, weight.device)
        root, metric = (None, None) if metric is None else _square_root(metric)
        row_weights = weights_of_rows(output_weights, weight)
        scale = row_weights.sqrt()
        whitened = scale[:, None] * weight
        left, singular, right = torch.linalg.svd(whitened if root is None else whitened @ root, full_matrices=False)
        best: Bilinear | None = None
        best_error = math.inf
        for number, (rank, bits, _) in enumerate(sizes):
            if progress:
                progress(number / len(sizes))
            if float(singular[rank:].square().sum()) > best_error:
                continue  # cutting off that much is worse than all of an earlier one's errors
            balance = singular[:rank].sqrt()
            q = left[:, :rank] * balance / scale[:, None]
            p = right[:rank].T * balance
            if root is not None:
                p = torch.linalg.solve_triangular(root.T, p, upper=True)
            fitted = rounded(weight, q, p, bits, metric, row_weights, exponent)
            error = weighted_error(weight.cpu(), fitted.decode().double() * 4.0**-exponent, metric, row_weights)
            if error < best_error:
                best, best_error = fitted, error
        if best is None:
            raise RiemError('the input metric: expected one in which errors are finite, found one that is too large')
        if progress:
            progress(1.0)
        return best


def weighted_error(weight: Tensor, other: Tensor, input_metric: Tensor | None, output_weights: Tensor | None) -> float:
    """``sum_i g_i (w_i - w'_i)^T A (w_i - w'_i)``."""
    error = (weight - other).double()
    through = error if input_metric is None else error @ input_metric.to(error)
    per_row = (error * through).sum(1)
    return float(per_row.sum() if output_weights is None else (per_row * output_weights.to(per_row)).sum())


def _of_unit_mean(metric: Tensor | None, device: torch.device) -> Tensor | None:
    """The metric in float64 with a diagonal of mean 1, which changes no minimum; None for None."""
    if metric is None:
        return None
    metric = metric.detach().to(device, torch.float64)
    return metric / metric.diagonal().mean().clamp_min(1e-300)


def _square_root(metric: Tensor) -> tuple[Tensor, Tensor]:
    """Lower triangular ``L``, and ``L L^T``: a metric of unit mean, slightly damped so that ``L`` exists."""
    for damping in DAMPINGS:
        damped = metric.clone()
        damped.diagonal().add_(damping)
        lower, failed = torch.linalg.cholesky_ex(damped)
        if not failed:
            return lower.float(), damped
    raise RiemError('the input metric is not positive semi-definite')
