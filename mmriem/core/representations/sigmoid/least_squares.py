"""One side of a tile at a time: Gauss-Newton steps for states, and their rounding."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..grid import Grid
from .regeneration import decay_of, slopes_of

ALIGNMENT = 16
"""Multiple to which states are padded with zeros before products."""


@dataclass
class Side:
    """The least-squares problems of one side of a batch of tiles: the fixed other side, and the target.

    Attributes:
        target: ``(T, n, m)`` weights of the ``n`` neurons of each of ``T`` tiles to their ``m`` partners.
        scale: ``(T, n, m)`` square roots of the weights of the errors, or None.
        linear: ``(U, Dq)`` map from a state to the arguments.
        offset: ``(U,)`` added to the arguments of the fitted side.
        decay: ``(T, m, U)`` of the partners.
    """

    target: Tensor
    scale: Tensor | None
    linear: Tensor
    offset: Tensor
    decay: Tensor
    mixing: Tensor
    constant: Tensor
    ridge: float

    def error(self, states: Tensor) -> Tensor:
        """``(T, n)`` squared error and ridge penalty of each neuron at ``states`` ``(T, n, Dq)``."""
        return self._error(states, self._residual(self.sigmoids_of(states)))

    def slopes(self, states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Error ``(T, n)``, descent direction ``(T * n, Dq)``, derivatives by the arguments ``(T * n, m, U)``."""
        sigmoids = self.sigmoids_of(states)
        residual = self._residual(sigmoids)
        slopes = slopes_of(sigmoids, self.mixing)
        if self.scale is not None:
            slopes.mul_(self.scale[..., None])
        slopes = slopes.flatten(0, 1)
        gradient = torch.bmm(residual.flatten(0, 1)[:, None], slopes)[:, 0] @ self.linear
        return self._error(states, residual), gradient - self.ridge * states.flatten(0, 1), slopes

    def curvature(self, slopes: Tensor) -> Tensor:
        """Gauss-Newton matrices ``(T * n, Dq, Dq)``."""
        width = self.linear.shape[1]
        padded = nn.functional.pad(self.linear, (0, -width % ALIGNMENT))  # odd sizes take almost twice the time
        jacobian = (slopes.flatten(0, 1) @ padded).view(*slopes.shape[:2], -1)
        curvature = torch.bmm(jacobian.transpose(1, 2), jacobian)[:, :width, :width].contiguous()
        curvature.diagonal(dim1=1, dim2=2).add_(self.ridge)
        return curvature

    def sigmoids_of(self, states: Tensor) -> Tensor:
        own = decay_of(states @ self.linear.T + self.offset)
        return (own[:, :, None] * self.decay[:, None]).add_(1).reciprocal_()

    def _residual(self, sigmoids: Tensor) -> Tensor:
        residual = self.target - self.constant - sigmoids @ self.mixing
        return residual if self.scale is None else residual * self.scale

    def _error(self, states: Tensor, residual: Tensor) -> Tensor:
        return residual.square().sum(2) + self.ridge * states.square().sum(2)


def _factor(curvature: Tensor, damping: Tensor) -> Tensor:
    """Cholesky factors of damped curvatures ``(n, D, D)``; ``damping`` ``(n,)`` is relative to the mean diagonal.

    Where rounding errors left a matrix without a factor, that is zero.
    """
    diagonal = curvature.diagonal(dim1=1, dim2=2)
    diagonal.add_((damping * diagonal.mean(1) + 1e-9)[:, None])
    lower, failed = torch.linalg.cholesky_ex(curvature)
    return lower if not failed.any() else torch.where((failed == 0)[:, None, None], lower, 0.0)


def _step(factor: Tensor, gradient: Tensor) -> Tensor:
    """Solutions ``(n, D)``; zero where the matrix had no factor, or they are not finite."""
    return torch.cholesky_solve(gradient[..., None], factor)[..., 0].nan_to_num(0, 0, 0)


def improve(side: Side, states: Tensor, damping: Tensor, factor: Tensor | None = None) -> tuple[float, Tensor]:
    """One step for each neuron, in place, kept only where it lowers the neuron's error.

    Args:
        side: of the least-squares problems.
        states: ``(T, n, Dq)``.
        damping: ``(T, n)``, adapted unless ``factor`` is given.
        factor: of the curvature of an earlier step, to use once more; None computes it.

    Returns:
        The error, and the factor.
    """
    before, gradient, slopes = side.slopes(states)
    used = _factor(side.curvature(slopes), damping.flatten()) if factor is None else factor
    del slopes
    moved = states + _step(used, gradient).view_as(states)
    after = side.error(moved)
    better = after < before
    states.copy_(torch.where(better[..., None], moved, states))
    if factor is None:
        damping.copy_(torch.where(better, damping * 0.3, damping * 4).clamp_(1e-7, 1e4))
    return float(torch.where(better, after, before).double().sum()), used


def round_states(side: Side, states: Tensor, grid: Grid) -> Tensor:
    """Grid integers for states, each neuron's rounded in its own Gauss-Newton metric; never worse than nearest."""
    _, gradient, slopes = side.slopes(states)
    metric = side.curvature(slopes)
    del slopes
    factor = _factor(metric, torch.full_like(metric[:, 0, 0], 1e-3))
    rounded = grid.round_in_metric(states.flatten(0, 1) + _step(factor, gradient), metric).view(states.shape)
    nearest = grid.nearest(states)
    better = side.error(grid.values(rounded)) < side.error(grid.values(nearest))
    return torch.where(better[..., None], rounded, nearest)
