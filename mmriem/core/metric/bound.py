"""How few bits any code could take for a distortion, were the weights Gaussian: reverse water-filling.

In the eigenvectors of the (damped) metric the weights of a row are independent components, and the distortion is their
squared error, each scaled to the variance ``c_ik = v g_i lambda_k``. The least rate for a sum ``D`` of squared errors
gives each component the error ``D_ik = min(theta, c_ik)`` and ``0.5 log2(c_ik / D_ik)`` bits (Cover and Thomas,
"Elements of Information Theory", theorem 10.3.3). Rounding to integers with ideal entropy coding takes
``SCALAR_LOSS`` bits more for each weight at high rates.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import RiemError
from ..representations.checks import MetricBlocks, checked_blocks
from ..representations.lattice.problem import damped

SCALAR_LOSS = 0.5 * math.log2(math.pi * math.e / 6)
"""Bits of a weight by which rounding to a cubic lattice misses the rate bound at high rates: 0.2546."""


class Bounds(NamedTuple):
    """Bits of a weight matrix with one variance for all weights, and with one for each row.

    The latter takes the spread of each row as known. At high rates it is the lower one; at low rates it is the higher
    one where rows of large weights matter more.
    """

    matrix: float
    rows: float


def rate_bound(weight_power: float | Tensor, eigenvalues: Tensor, output_weights: Tensor, distortion: float) -> float:
    """The least bits for Gaussian weights at that distortion; infinite for none at all.

    Args:
        weight_power: ``v``, mean square of the weights: of all, or ``(out,)`` of each row.
        eigenvalues: ``lambda``, of the metric: ``(in,)``, or ``(groups, in)`` for consecutive rows.
        output_weights: ``g``, ``(out,)``.
        distortion: ``sum_i g_i dw_i^T A dw_i`` over all rows.

    Raises:
        RiemError: the distortion is no number from 0 on.

    >>> rate_bound(4.0, torch.ones(10), torch.ones(5), 50 * 0.25)
    100.0
    """
    if not distortion >= 0:
        raise RiemError(f'distortion: expected a number from 0 on, found {distortion}')
    eigenvalues = eigenvalues.double().reshape(-1, eigenvalues.shape[-1])
    rows = (output_weights.double() * weight_power).reshape(len(eigenvalues), -1)
    variances = (rows[:, :, None] * eigenvalues[:, None, :]).flatten()
    variances = variances[variances > 0].sort().values
    count = len(variances)
    below = torch.cat([variances.new_zeros(1), variances.cumsum(0)])  # sum of all smaller ones
    levels = below[:-1] + variances * torch.arange(count, 0, -1).to(variances)  # the distortion at that theta
    whole = int(torch.searchsorted(levels, distortion))  # components without a bit
    if whole == count:
        return 0.0
    theta = (distortion - float(below[whole])) / (count - whole)
    if theta <= 0:
        return math.inf
    return 0.5 * float((variances[whole:] / theta).log2().clamp_min(0).sum())


def metric_eigenvalues(blocks: list[Tensor]) -> Tensor:
    """Those of the metric with the damping that lattices are fitted with, ``(groups, in)`` float64."""
    return torch.cat([torch.linalg.eigvalsh(damped(block)) for block in blocks], 1).clamp_min(0)


def weight_bounds(
    weight: Tensor, input_metric: MetricBlocks | None, output_weights: Tensor | None, distortion: float
) -> Bounds:
    """The least bits for a weight matrix ``(out, in)`` at the distortion of its lattice.

    Args:
        weight: the matrix.
        input_metric: see ``MetricBlocks``; without one the identity, undamped.
        output_weights: ``(out,)``; without them ones.
        distortion: as ``Problem.solve`` gives it.

    Raises:
        RiemError: as for a lattice; or the distortion is no number from 0 on.
    """
    blocks = checked_blocks(weight, input_metric, output_weights)
    squares = weight.detach().double().square()
    eigenvalues = metric_eigenvalues(blocks) if blocks else torch.ones(weight.shape[1], dtype=torch.float64)
    if output_weights is None:
        output_weights = torch.ones(len(weight))
    return Bounds(
        rate_bound(float(squares.mean()), eigenvalues, output_weights, distortion),
        rate_bound(squares.mean(1), eigenvalues, output_weights, distortion),
    )
