"""The stage that solves: states for each weight, such that the whole file meets the budget."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from ..budget.plan import Plan, allocate
from ..errors import RiemError
from ..execution.executor import Executor
from ..execution.tasks import Progress, Task, run_all
from ..representations.base import Codec, Encoded
from ..representations.registry import parsed
from .archiving import Frame
from .encoded_weight import EncodedWeight, EncodedWeights
from .job import Job
from .measure import Metrics
from .progress import OnProgress, WorkLog


@dataclass(frozen=True, eq=False)
class Solution:
    """Encoded weights of a file that meets the budget.

    Attributes:
        weights: all of them.
        limit: bits that the file may have.
        scale: the one of all steps, where weights have steps.
        turns: how often all weights were solved.
    """

    weights: EncodedWeights
    limit: float
    scale: float | None = None
    turns: int = 0


def solve_planned(job: Job, metrics: Metrics, frame: Frame, log: WorkLog) -> Solution:
    """A budget for each weight beforehand, then its fit.

    Raises:
        RiemError: the budget is too small for what stays dense, or for the weights.
    """
    tasks = [
        Task(
            plan.view.name,
            math.prod(plan.view.shape),
            partial(_fit, job, metrics, plan),
            job.owners[plan.view.name],
            f'fit {plan.view.name} {plan.configuration}',
        )
        for plan in plan_weights(job, frame)
    ]
    with log.timed('fit'):
        weights = run_weights(job.executor, log, 'fit', tasks, log.stage('fit'), log.counter(len(job.own)))
    return Solution(weights, job.wanted_bits)


def plan_weights(job: Job, frame: Frame) -> list[Plan]:
    """What each weight may take of the budget.

    Raises:
        RiemError: the budget is too small for what stays dense, or for the weights.
    """
    wanted = job.wanted_bits
    rest = frame.rest_bits(job.expected_state, wanted / job.elements)
    if wanted <= rest:
        raise RiemError(
            f'budget: expected room for the {rest // 8} bytes of what stays dense, found {wanted / 8:.0f} bytes '
            'for the whole file; ask for a larger ratio or more bits, or compress more of the weights'
        )
    fit = job.settings.fit
    dense = EncodedWeight(None)
    dense_bits = {view.name: dense.bits(view, job.state_dict[view.name]) for view in job.views}
    return allocate(job.views, fit.fitter, wanted - rest, dense_bits)


def run_weights(
    executor: Executor,
    log: WorkLog,
    stage: str,
    tasks: Sequence[Task],
    on_progress: OnProgress | None = None,
    on_result: Callable[[EncodedWeight], None] | None = None,
) -> EncodedWeights:
    """The weights that the tasks make, in every process, and their seconds under that stage."""
    made = executor.run(tasks, EncodedWeight.to_bytes, EncodedWeight.from_bytes, on_progress, on_result)
    for task, weight in zip(tasks, made):
        log.weight_seconds[task.name][stage] += weight.seconds
    return {task.name: weight for task, weight in zip(tasks, made)}


def unpack(job: Job, weights: EncodedWeights, log: WorkLog) -> EncodedWeights:
    """The weights with representations that are parsed."""

    def parse(weight: EncodedWeight, encoded: Encoded, progress: Progress) -> EncodedWeight:
        return replace(weight, encoded=parsed(encoded))

    tasks = [
        Task(name, job.costs[name], partial(parse, weight, weight.encoded))
        for name, weight in weights.items()
        if weight.encoded is not None
    ]
    with log.timed('unpack'):
        return {**weights, **dict(zip((task.name for task in tasks), run_all(tasks, job.executor.threads)))}


def _fit(job: Job, metrics: Metrics, plan: Plan, progress: Progress) -> EncodedWeight:
    started = time.thread_time()
    encoded = None if plan.configuration is None else _represent(job, metrics, plan, progress)
    weight = EncodedWeight.whole(plan.view, job.state_dict[plan.view.name], encoded, None, 0.0)
    return replace(weight, seconds=time.thread_time() - started)


def _represent(job: Job, metrics: Metrics, plan: Plan, progress: Progress) -> Codec:
    fit, metric, matrix = job.settings.fit, metrics.take(plan.view.name), job.matrix(plan.view)
    try:
        return fit.fitter.fit(
            matrix,
            plan.configuration,
            input_metric=None if metric is None else metric.dense().to(job.device),
            output_weights=None if metric is None else metric.output_weights.to(matrix),
            progress=progress,
        )
    except RiemError as error:
        raise RiemError(f'weight {plan.view.name!r}: {error}') from error
