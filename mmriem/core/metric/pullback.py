"""The pullback metric: what an error of a weight does to the outputs of the network.

For a small error ``dW`` of the weight matrix of one layer, the squared relative error of the network's outputs,
averaged over its output tensors, is to first order

    sum_i g_i dw_i^T A dw_i

``A`` is the second moment of the layer's inputs ``x`` (im2col columns), each weighted by the energy ``|G|^2`` of the
gradient at its position of a random projection of the outputs, because an error matters where the outputs depend on it.
This takes errors at different positions as uncorrelated (Grosse and Martens, "A Kronecker-factored approximate Fisher
matrix for convolution layers", 2016). How much a row matters is measured without that: ``g_i tr(A)`` is the mean square
of the gradient of the row's weights, exact for white errors. Where features are averaged over positions, errors add up,
and the difference is tenfold.

Inputs are seen where the network calls ``linear`` and the convolutions, however often and by whatever module. A
parameter that is used in another way (a table of position biases, a deformable convolution) has a diagonal metric
from the gradients of its own elements.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import partial

import torch
from torch import Tensor, nn

from ..errors import RiemError
from ..execution.executor import Executor
from ..execution.tasks import Progress, Task, run_all
from ..execution.workers import join, split
from ..images.probe import Output, Probe, frozen_copy
from ..weights.views import WeightView
from .gradients import CHANGED, saved_copies, tolerant_gradients
from .metric import Metric, MetricSums
from .observation import Watch

LANES = 2
"""Partial sums of a metric that are added up side by side, however many threads there are: rounding stays the same."""


def collect(
    model: nn.Module,
    views: Sequence[WeightView],
    probe: Probe,
    *,
    threads: int = 1,
    seed: int = 0,
    on_progress: Callable[[float], None] | None = None,
) -> dict[str, Metric]:
    """The pullback metric of each weight that the outputs depend on, by name; others are left out.

    The model is not changed. The result depends on the seed, not on ``threads``.
    """
    return dict(each_metric(model, views, probe, Executor(threads), seed=seed, on_progress=on_progress))


def each_metric(
    model: nn.Module,
    views: Sequence[WeightView],
    probe: Probe,
    executor: Executor,
    owners: Sequence[int] | None = None,
    *,
    seed: int = 0,
    on_progress: Callable[[float], None] | None = None,
) -> Iterator[tuple[str, Metric]]:
    """As :func:`collect`, of several processes: names and metrics of the weights that this one owns, one by one.

    Each lane is the work of one process, so more than ``LANES`` of them do not run faster.

    Args:
        owners: rank of the process that gets the metric of each weight; None is this one.
    """
    batches = list(enumerate(probe.batches()))
    lanes = [batches[lane::LANES] for lane in range(min(LANES, len(batches)))]
    workers = executor.workers

    def work(lane: list[tuple[int, tuple[int, int]]], progress: Progress) -> dict[str, MetricSums]:
        own, sums = frozen_copy(model), dict[str, MetricSums]()
        saving: Callable[[], AbstractContextManager] = nullcontext
        for done, (number, batch) in enumerate(lane, 1):
            place = (sums, own, views, probe, batch, ((seed << 20) + number) % (1 << 63))
            try:
                with saving():
                    _add_batch(*place)
            except RiemError as error:
                if done > 1 or CHANGED not in str(error):
                    raise
                saving = saved_copies
                sums.clear()  # of a part of the backward pass
                with saving():
                    _add_batch(*place)
            progress(done / len(lane))
        return sums

    tasks = [Task('images', len(lane), partial(work, lane)) for lane in lanes[workers.rank :: workers.size]]
    found = run_all(tasks, executor.threads, on_progress and (lambda share, _: on_progress(share)))
    for view, owner in zip(views, owners or [workers.rank] * len(views)):
        sums = [lane.pop(view.name, None) for lane in found]
        if workers.size > 1:
            sent = workers.gather(join(part.to_bytes() if part else b'' for part in sums), owner)
            if owner != workers.rank:
                continue
            parts = [split(part) for part in sent]
            packed = [parts[lane % workers.size][lane // workers.size] for lane in range(len(lanes))]
            sums = [MetricSums.from_bytes(part) if part else None for part in packed]
        metric = _of_lanes([part for part in sums if part is not None], probe.images)
        if metric is not None:
            yield view.name, metric


def _of_lanes(lanes: Sequence[MetricSums], images: int) -> Metric | None:
    """The metric of a weight; None where no output depends on it."""
    if not lanes:
        return None
    halves = [lane for lane in lanes if lane.energy > 0]
    chance = halves[0].chance(halves[1]) if len(halves) == LANES else ()
    total = functools.reduce(MetricSums.add, lanes)
    is_reached = total.energy > 0 and float(total.rows.sum()) > 0
    return total.metric(images, chance) if is_reached else None


def _add_batch(
    sums: dict[str, MetricSums],
    model: nn.Module,
    views: Sequence[WeightView],
    probe: Probe,
    batch: tuple[int, int],
    seed: int,
) -> None:
    watch, outputs = _observed(sums, model, views, probe, batch, seed)
    if watch.unseen and not outputs:
        raise RiemError(
            f'{type(model).__name__}: expected gradients of its outputs, found that it computes none; '
            f'{probe.without_metric}'
        )
    if outputs:
        try:
            projection = _random_projection(outputs, batch, seed)
        except RiemError as error:
            raise RiemError(f'{type(model).__name__}: {error}, or {probe.without_metric}') from error
        try:
            projection.backward()
        except RuntimeError as error:  # values that it needs were changed, or a function has no derivative
            reason = ' '.join(str(error).split())
            raise RiemError(
                f'{type(model).__name__}: expected gradients of its outputs, found {reason}; {probe.without_metric}'
            ) from error
    watch.finish()


def _observed(
    sums: dict[str, MetricSums],
    model: nn.Module,
    views: Sequence[WeightView],
    probe: Probe,
    batch: tuple[int, int],
    seed: int,
) -> tuple[Watch, list[Output]]:
    """A run of the network, and those of its outputs that have gradients, see :mod:`.gradients`."""

    def run(gradients: Callable[[], AbstractContextManager]) -> tuple[Watch, list[Output]]:
        watch = Watch(sums, model, views, seed)
        with gradients(), watch:
            outputs = probe.judged(model, *batch)
        return watch, outputs

    try:
        as_it_is = run(torch.enable_grad)
    except Exception:  # a network is anybody's code, and most is never run with gradients
        return run(tolerant_gradients)
    if as_it_is[0].unseen:
        with suppress(Exception):  # it may need what it says: then the weights there have no metric
            return run(tolerant_gradients)
    return as_it_is


def _random_projection(outputs: Sequence[Output], batch: tuple[int, int], seed: int) -> Tensor:
    """Of the relative outputs: the mean over the signs of its squared gradient is that of the relative error.

    Elements that are not finite, such as logits of classes that are ruled out, say nothing.

    Raises:
        RiemError: no element of an output is finite.
    """
    generator = torch.Generator().manual_seed(seed)
    total = outputs[0].values.new_zeros(())
    for output in outputs:
        values, weights = output.values, output.weights
        signs = torch.randint(0, 2, values.shape, generator=generator).to(values) * 2 - 1
        share = (batch[1] - batch[0]) / output.parts / values.numel()
        finite = values.detach().isfinite()
        if weights is not None:
            finite &= weights.isfinite()
        if not finite.all():
            values, signs, weights = values[finite], signs[finite], None if weights is None else weights[finite]
        signed = signs if weights is None else signs * weights
        total = total + (signed * values).sum() / (_spread(values.detach(), weights) / share**0.5)
    return total


def _spread(values: Tensor, weights: Tensor | None) -> Tensor:
    """Standard deviation of finite values, at least 1e-6; of a single one its magnitude.

    With weights: root mean square of the weighted differences from the mean to which these weights lead.
    """
    if not values.numel():
        raise RiemError('outputs of the network: expected finite values, found none; look for NaN in the checkpoint')
    if weights is not None:
        squares = weights.square()
        mean = (squares * values).sum() / squares.sum()
        return (weights * (values - mean)).square().mean().sqrt().clamp_min(1e-6)
    spread = values.abs().max() if values.numel() == 1 else values.std()
    if not spread.isfinite():  # the squares are beyond float32
        spread = values.double().std().clamp_max(torch.finfo(values.dtype).max).to(values)
    return spread.clamp_min(1e-6)
