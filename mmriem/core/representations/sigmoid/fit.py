"""The fit of all tiles: random starts, alternating least squares, steps of the metric, rounding."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from ...torch_versions import fused_adam
from ..grid import Grid
from .least_squares import Side, improve, round_states
from .regeneration import STATE_NAMES, Tile, decay_of, random_metric, shifted, tile_spans
from .settings import METRIC_BITS, SigmoidSettings

SWEEPS = 56
"""Alternating sweeps of a fit at effort 1."""
FIRST_SWEEPS = 5
"""First sweeps of a fit, which have a curvature each; then one serves for ``REPEATS`` steps."""
REPEATS = 3
"""Steps that one curvature serves for after ``FIRST_SWEEPS``."""
METRIC_STEPS, MOST_METRIC_STEPS = 8, 16
"""Fewest and most Adam steps on the metric in a sweep, of which there is one for each tile."""
LEARNING_RATE = 3e-3
"""Learning rate of Adam for the metric at the first sweep; it falls to zero."""
FOLLOWING_SWEEPS = 2
"""Sweeps of the states once the metric is rounded."""
ROUNDING_SWEEPS = 4
"""Sweeps that round the states, each side given the other one."""
CHUNK = {True: 1 << 19, False: 1 << 26}
"""Sigmoids of the tiles that a sweep works on together, on a CPU (True) and on other devices: what fits the nearest
cache."""
ROUNDING_CHUNK = {True: 1 << 21, False: 1 << 26}
"""Sigmoids of the tiles whose states are rounded together, on a CPU (True) and on other devices."""
KEPT = 3
"""Random starts of a fit that go on after the first cull."""
MIN_GAIN = 1e-3
"""Least share of the error that a step must take off: after ``PATIENCE`` sweeps of less a fit ends early."""
PATIENCE = 2
"""Sweeps of less than ``MIN_GAIN`` that end a fit."""
CLIP = {2: 1.8, 3: 2.3, 4: 2.8, 5: 3.3}
"""Range of the state grid in standard deviations, by state bits; from minimum to maximum where not listed."""


def schedule_of(sweeps: int) -> list[tuple[float, int]]:
    """The share that is done and the repeats of each sweep, of so many in all."""
    schedule, done = [], 0
    while done < sweeps:
        repeats = min(REPEATS if done >= FIRST_SWEEPS else 1, sweeps - done)
        schedule.append((done / sweeps, repeats))
        done += repeats
    return schedule


def weights_of_pairs(
    shape: tuple[int, int], input_metric: Tensor | None, output_weights: Tensor | None, device: torch.device
) -> Tensor | None:
    """``(out, in)`` square roots of the weights of the squared errors, of mean square 1; None for equal weights."""
    if input_metric is None and output_weights is None:
        return None
    columns = torch.ones(shape[1], device=device) if input_metric is None else input_metric.detach().float().diagonal()
    rows = torch.ones(shape[0], device=device) if output_weights is None else output_weights.detach().float()
    squares = rows[:, None] * columns
    return (squares / squares.mean().clamp_min(1e-30)).sqrt()


class Tiling:
    """How a matrix ``(out, in)`` lies in ``T`` tiles of one size; a shorter block has its last neuron twice."""

    def __init__(self, shape: tuple[int, int], row_blocks: int, col_blocks: int, device: torch.device) -> None:
        self._counts = (row_blocks, col_blocks)
        self._neurons = [_members(size, count).to(device) for size, count in zip(shape, self._counts)]
        self._first = [torch.diff(neurons, dim=1, prepend=neurons[:, :1] - 1) > 0 for neurons in self._neurons]

    def cut(self, matrix: Tensor) -> Tensor:
        """``(out, in)`` to ``(T, rows, columns)``."""
        rows, columns = self._neurons
        return matrix[rows[:, None, :, None], columns[None, :, None, :]].flatten(0, 1)

    def once(self) -> Tensor | None:
        """``(T, rows, columns)``: whether a pair is there for the first time; None where all are."""
        if all(first.all() for first in self._first):
            return None
        rows, columns = self._first
        return (rows[:, None, :, None] & columns[None, :, None, :]).flatten(0, 1)

    def of_rows(self, states: Tensor) -> Tensor:
        """States of output neurons ``(col_blocks, out, D)`` to ``(T, rows, D)``."""
        return states[:, self._neurons[0]].transpose(0, 1).flatten(0, 1)

    def of_columns(self, states: Tensor) -> Tensor:
        """States of input neurons ``(row_blocks, in, D)`` to ``(T, columns, D)``."""
        return states[:, self._neurons[1]].flatten(0, 1)

    def rows(self, tiles: Tensor) -> Tensor:
        """Inverse of :meth:`of_rows`."""
        return tiles.unflatten(0, self._counts).transpose(0, 1)[:, self._first[0]].contiguous()

    def columns(self, tiles: Tensor) -> Tensor:
        """Inverse of :meth:`of_columns`."""
        return tiles.unflatten(0, self._counts)[:, self._first[1]].contiguous()


def _members(size: int, count: int) -> Tensor:
    """``(count, widest)`` numbers of the neurons of each block."""
    blocks = tile_spans(size, count)
    widest = max(block.stop - block.start for block in blocks)
    return torch.stack([torch.arange(block.start, block.start + widest).clamp_max(block.stop - 1) for block in blocks])


class Quantised(NamedTuple):
    """Integers and grids of states and metric, and what stays float: offsets, mixing weights, constant."""

    codes: dict[str, Tensor]
    grids: dict[str, Grid]
    b: Tensor
    w: Tensor
    c: Tensor


class Fit:
    """The running fit of one matrix from one random start; the target has mean 0 and standard deviation 1.

    Tiles depend on each other through the metric alone: a chunk of them at a time goes through batched products.
    """

    def __init__(self, weight: Tensor, settings: SigmoidSettings, pair_weights: Tensor | None, seed: int) -> None:
        shape, weight, device = (weight.shape[0], weight.shape[1]), weight.detach().double(), weight.device
        self.mean, self.spread = float(weight.mean()), float(weight.std(unbiased=False))
        dq, dmu, shifts = settings.dq, settings.dmu, settings.shifts
        self.tiling = Tiling(shape, settings.row_blocks, settings.col_blocks, device)
        self.target = self.tiling.cut(((weight - self.mean) / (self.spread or 1.0)).float())
        once = self.tiling.once()
        self.scale = None if pair_weights is None else self.tiling.cut(pair_weights)
        if once is not None:
            self.scale = once.float() if self.scale is None else self.scale * once
        self.bits = settings.state_bits
        self.ridge = 0.03 * 4.0 ** (4 - self.bits)  # coarser grids want states that stay small
        generator = torch.Generator().manual_seed(seed)
        q = torch.randn(settings.col_blocks, shape[0], dq, generator=generator).to(device)
        self.q = self.tiling.of_rows(q).contiguous()
        self.p = q.new_zeros(len(self.target), self.target.shape[2], dq)
        self.damping_q, self.damping_p = (q.new_full(side.shape[:2], 0.1) for side in (self.q, self.p))
        start = random_metric(dq, dmu, shifts, 0.7 if self.bits >= 8 else 1.0, generator)
        self.metric = [parameter.to(device) for parameter in start]
        self.optimiser = fused_adam(self.metric, lr=LEARNING_RATE, betas=(0.9, 0.99))
        self.sigmoids = self.target[0].numel() * shifts * dmu
        self.error = math.inf
        self.idle = 0

    def start_from(self, states: Mapping[str, Tensor]) -> None:
        """Float states of a weight like the target."""
        q, p, metric, b, w, c = (states[name].clone() for name in STATE_NAMES)
        self.q, self.p = self.tiling.of_rows(q).contiguous(), self.tiling.of_columns(p).contiguous()
        spread = self.spread or 1.0
        self.metric = [metric, b, w / spread, (c - self.mean) / spread]

    def sweep(self, share: float, repeats: int = 1) -> None:
        """Steps for every state, and some on the metric.

        Args:
            share: of the schedule that is done.
            repeats: steps with one curvature, and so many times the steps on the metric.
        """
        error, due = 0.0, 0.0
        learn = 0.05 <= share < 0.95
        for group in self.optimiser.param_groups:
            group['lr'] = LEARNING_RATE * (1 - share)
        each = repeats * min(MOST_METRIC_STEPS, max(METRIC_STEPS, len(self.target))) / len(self.target)
        for tiles in self._chunks(CHUNK):
            factor_p = factor_q = None
            for _ in range(repeats):
                _, factor_p = improve(self._columns(tiles), self.p[tiles], self.damping_p[tiles], factor_p)
                found, factor_q = improve(self._rows(tiles), self.q[tiles], self.damping_q[tiles], factor_q)
            error += found
            due += each * (tiles.stop - tiles.start)
            number = tiles.start
            while learn and due >= 1 - 1e-6:
                self._learn_metric(number)
                number = number + 1 if number + 1 < tiles.stop else tiles.start
                due -= 1
        self.idle = self.idle + 1 if error >= (1 - MIN_GAIN) ** repeats * self.error else 0
        self.error = error

    def quantised(self, advance: Callable[[], None]) -> Quantised:
        """Round the metric, let the states follow, then round them in turn, each given the other side."""
        metric, b, w, c = self.metric
        metric_grid = Grid.between(metric.reshape(-1, 1), METRIC_BITS)
        metric_codes = metric_grid.nearest(metric[..., None])[..., 0]
        self.metric = [metric_grid.values(metric_codes[..., None])[..., 0], b.half().float(), w, c]
        for _ in range(FOLLOWING_SWEEPS):
            self.sweep(1.0)
            advance()
        clip = CLIP.get(self.bits)
        q, p = self.tiling.rows(self.q), self.tiling.columns(self.p)
        grids = {'q': Grid.between(q, self.bits, clip), 'p': Grid.between(p, self.bits, clip)}
        codes_q, codes_p = grids['q'].nearest(self.q), grids['p'].nearest(self.p)
        for _ in range(ROUNDING_SWEEPS):
            for tiles in self._chunks(ROUNDING_CHUNK):
                codes_p[tiles] = round_states(self._columns(tiles), self.p[tiles], grids['p'])
                self.p[tiles] = grids['p'].values(codes_p[tiles])
                codes_q[tiles] = round_states(self._rows(tiles), self.q[tiles], grids['q'])
                self.q[tiles] = grids['q'].values(codes_q[tiles])
            advance()
        self._solve_mixing()
        codes = {'q': self.tiling.rows(codes_q), 'p': self.tiling.columns(codes_p), 'M': metric_codes}
        grids['M'] = metric_grid
        return Quantised(
            {key: value.cpu() for key, value in codes.items()},
            {key: grid.cpu() for key, grid in grids.items()},
            *(value.cpu() for value in (self.metric[1], w * self.spread, c * self.spread + self.mean)),
        )

    def _chunks(self, sigmoids: dict[bool, int]) -> Iterator[slice]:
        """The tiles, as many at a time as have so many sigmoids by kind of device."""
        most = max(1, sigmoids[self.target.device.type == 'cpu'] // self.sigmoids)
        for start in range(0, len(self.target), most):
            yield slice(start, min(start + most, len(self.target)))

    def _rows(self, tiles: slice) -> Side:
        metric, b, w, c = self.metric
        decay = decay_of(self.p[tiles] @ shifted(metric).T)
        scale = None if self.scale is None else self.scale[tiles]
        linear, mixing = metric.reshape(-1, metric.shape[-1]), w.repeat(len(metric))
        return Side(self.target[tiles], scale, linear, b.reshape(-1), decay, mixing, c, self.ridge)

    def _columns(self, tiles: slice) -> Side:
        metric, b, w, c = self.metric
        # the offsets are in the decay, where they are added once for each row
        decay = decay_of(self.q[tiles] @ metric.reshape(-1, metric.shape[-1]).T + b.reshape(-1))
        scale = None if self.scale is None else self.scale[tiles].transpose(1, 2)
        target, mixing = self.target[tiles].transpose(1, 2), w.repeat(len(metric))
        return Side(target, scale, shifted(metric), torch.zeros_like(b).reshape(-1), decay, mixing, c, self.ridge)

    def _solve_mixing(self) -> None:
        """The best ``w`` and ``c`` for the rounded states: a linear least-squares problem."""
        metric, b, w, c = self.metric
        gram = torch.zeros(len(w) + 1, len(w) + 1, dtype=torch.float64, device=w.device)
        right = torch.zeros(len(w) + 1, dtype=torch.float64, device=w.device)
        for number in range(len(self.target)):
            tile = Tile(self.q[number], self.p[number], metric, b, w)
            residual = (self.target[number] - c - tile.sigmoids @ tile.mixing).reshape(-1)
            features = tile.sigmoids.view(len(residual), len(metric), len(w)).sum(1)
            features = torch.cat([features, torch.ones_like(features[:, :1])], 1)
            if self.scale is not None:
                scale = self.scale[number].reshape(-1)
                features, residual = features * scale[:, None], residual * scale
            gram += features.T @ features
            right += features.T @ residual
        gram.diagonal().add_(1e-6 * gram.diagonal().mean() + 1e-30)
        step = torch.linalg.solve(gram, right).float()
        w += step[:-1]
        c += step[-1]

    def _learn_metric(self, number: int) -> None:
        """One step by the gradients of a tile."""
        metric, b, w, c = self.metric
        tile = Tile(self.q[number], self.p[number], metric, b, w)
        residual = c + tile.sigmoids @ tile.mixing - self.target[number]
        if self.scale is not None:
            residual *= self.scale[number].square()
        gradients = tile.gradients(residual * (2 / residual.numel()))[2:]
        for parameter, gradient in zip(self.metric, gradients):
            parameter.grad = gradient
        self.optimiser.step()
