"""The paper's formula: from states and a metric to the weights of a tile."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ...coding import exact

STATE_NAMES = ('q', 'p', 'M', 'b', 'w', 'c')
"""Names of the states: output neurons, input neurons, the metric, its offsets, the mixing weights, the constant."""
MAX_EXPONENT = 80.0
"""Greatest magnitude of the arguments ``u`` and ``v`` of a sigmoid, so that each of ``a`` and ``b`` is a finite normal
float32 number other than 0; where their product overflows, the sigmoid is 0."""


def shifted(metric: Tensor) -> Tensor:
    """``N`` ``(K * Dmu, Dq)`` with ``N_k p = M_k shift_k(p)``, from ``M`` ``(K, Dmu, Dq)``."""
    shifts, _, dq = metric.shape
    return torch.cat([torch.roll(metric[k], k * dq // shifts, -1) for k in range(shifts)])


def tile_spans(size: int, count: int) -> list[slice]:
    """``count`` consecutive blocks of nearly equal length."""
    edges = [size * number // count for number in range(count + 1)]
    return [slice(start, stop) for start, stop in zip(edges, edges[1:])]


def tiles(q: Tensor, p: Tensor) -> Iterator[tuple[int, slice, int, slice]]:
    """Row block, its rows, column block, its columns."""
    for i, rows in enumerate(tile_spans(q.shape[1], p.shape[0])):
        for j, columns in enumerate(tile_spans(p.shape[1], q.shape[0])):
            yield i, rows, j, columns


def evaluate(q: Tensor, p: Tensor, metric: Tensor, b: Tensor, w: Tensor, c: Tensor) -> Tensor:
    """The weight matrix in a fixed order of exactly rounded operations."""
    rows_map, columns_map = metric.reshape(-1, metric.shape[-1]), shifted(metric)
    mixing = w.repeat(metric.shape[0])
    weight = q.new_empty(q.shape[1], p.shape[1])
    for i, rows, j, columns in tiles(q, p):
        a_rows = exact_decay(exact.product(q[j, rows], rows_map) + b.reshape(-1).double())
        a_columns = exact_decay(exact.product(p[i, columns], columns_map))
        total = c.expand(a_rows.shape[1], a_columns.shape[1]).clone()
        for unit in range(len(mixing)):
            term = a_rows[unit, :, None] * a_columns[unit]
            total += torch.div(mixing[unit], term.add_(1), out=term)
        weight[rows, columns] = total
    return weight


def exact_decay(arguments: Tensor) -> Tensor:
    """``exp(-x)`` as float32 ``(U, n)`` of float64 ``(n, U)``."""
    return exact.exponential(-arguments.clamp(-MAX_EXPONENT, MAX_EXPONENT)).float().T.contiguous()


class Regenerate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *states: Tensor) -> Tensor:
        ctx.save_for_backward(*states)
        return evaluate(*states)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        q, p, metric, b, w, _ = ctx.saved_tensors
        grads = [torch.zeros_like(x) for x in ctx.saved_tensors]
        for i, rows, j, columns in tiles(q, p):
            tile = Tile(q[j, rows], p[i, columns], metric, b, w)
            dq, dp, *shared = tile.gradients(gradient[rows, columns])
            grads[0][j, rows] += dq
            grads[1][i, columns] += dp
            for total, part in zip(grads[2:], shared):
                total += part
        return tuple(grads)


def random_metric(
    dq: int, dmu: int, shifts: int, amplitude: float = 1.0, generator: torch.Generator | None = None
) -> list[Tensor]:
    """``M``, ``b``, ``w``, ``c`` to start from; arguments of unit spread for states of unit spread.

    The signs of ``w`` alternate: were they alike, the second-order terms of the sigmoids could not cancel.
    """
    metric = torch.randn(shifts, dmu, dq, generator=generator) / math.sqrt(dq)
    offsets = torch.randn(shifts, dmu, generator=generator)
    return [metric, offsets, amplitude * (torch.arange(dmu) % 2 * 2.0 - 1.0), torch.zeros(())]


def decay_of(argument: Tensor) -> Tensor:
    return torch.exp(-argument.clamp(-MAX_EXPONENT, MAX_EXPONENT))


def sigmoids_of(row_arguments: Tensor, column_decay: Tensor) -> Tensor:
    """``(R, C, U)`` sigmoids of all pairs, one temporary."""
    return (decay_of(row_arguments)[:, None] * column_decay).add_(1).reciprocal_()


def slopes_of(sigmoids: Tensor, mixing: Tensor) -> Tensor:
    """``w s (1 - s)`` in the memory of the sigmoids: a fresh temporary would cost more than the arithmetic."""
    return torch.addcmul(sigmoids, sigmoids, sigmoids, value=-1, out=sigmoids).mul_(mixing)


class Tile:
    """One tile at given states: sigmoids and gradients. ``q`` ``(R, Dq)``, ``p`` ``(C, Dq)``."""

    def __init__(self, q: Tensor, p: Tensor, metric: Tensor, b: Tensor, w: Tensor) -> None:
        self.q, self.p, self.shape = q, p, metric.shape
        self.rows_map, self.columns_map = metric.reshape(-1, metric.shape[-1]), shifted(metric)
        self.mixing = w.repeat(metric.shape[0])
        self.sigmoids = sigmoids_of(q @ self.rows_map.T + b.reshape(-1), decay_of(p @ self.columns_map.T))

    def gradients(self, upstream: Tensor) -> tuple[Tensor, ...]:
        """Gradients of ``(upstream * W).sum()`` with respect to ``q, p, M, b, w, c``. Uses up the sigmoids."""
        shifts, dmu, dq = self.shape
        s = self.sigmoids
        w_gradient = torch.mv(s.reshape(-1, s.shape[-1]).T, upstream.reshape(-1)).view(shifts, dmu).sum(0)
        slopes = slopes_of(s, self.mixing).mul_(upstream[..., None])
        by_row, by_column = slopes.sum(1), slopes.sum(0)
        metric_gradient = (by_row.T @ self.q).view(shifts, dmu, dq).clone()
        shifted_gradient = (by_column.T @ self.p).view(shifts, dmu, dq)
        for k in range(shifts):
            metric_gradient[k] += torch.roll(shifted_gradient[k], -(k * dq // shifts), -1)
        b_gradient = by_row.sum(0).view(shifts, dmu)
        return (
            by_row @ self.rows_map,
            by_column @ self.columns_map,
            metric_gradient,
            b_gradient,
            w_gradient,
            upstream.sum(),
        )
