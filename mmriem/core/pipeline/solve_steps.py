"""The stage that solves, for representations with steps: the one scale that meets the budget is sought."""

from __future__ import annotations

import contextlib
import copy
import math
import struct
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from ..budget.plan import DENSE_BITS, RECORD_BITS
from ..budget.scale import CLOSE_ENOUGH, COARSEST, relative_steps, search
from ..errors import Hopeless, RiemError
from ..execution.tasks import Progress, Task
from ..metric.metric import Metric
from ..representations.base import Encoded, StepProblem
from ..representations.registry import parsed
from ..weights.views import WeightView
from .archiving import Frame
from .encoded_weight import EncodedWeight, EncodedWeights, average_bits
from .job import Job
from .measure import Metrics
from .progress import OnProgress, WorkLog
from .settings import FitOptions
from .solve import Solution, run_weights

DEFAULT_ERRORS = (0.025, 0.05)
"""Predicted relative errors of the outputs that are aimed at where no budget is given. The file is as small as the
first one allows; where that is more than ``DEFAULT_SIZE`` of the fp32 weights, it has that size, unless the second one
is exceeded."""
DEFAULT_TUNED_ERROR = 0.08
"""Second of ``DEFAULT_ERRORS`` where norms and biases are trained afterwards, which takes part of the error back."""
DEFAULT_SIZE = 1 / 17
"""Size of a file over the fp32 weights that is aimed at where no budget is given, see ``DEFAULT_ERRORS``."""
SIZINGS = 4
"""Files that are written until what the records take is known."""
LARGEST_TURN = 300
"""Most binary orders of magnitude that a guess of the scale falls by, and to: a budget may have room for far more."""
HOPE = 0.95
"""Share of the largest accepted error at which a size is proposed, so that a file of that size is accepted itself."""


@dataclass(frozen=True)
class Sensitivity:
    """What all processes need to know of a problem that one of them has: as its properties of these names."""

    spread: float
    log_sensitivity: float
    seconds: float

    def to_bytes(self) -> bytes:
        return _SENSITIVITY.pack(self.spread, self.log_sensitivity, self.seconds)

    @classmethod
    def from_bytes(cls, data: bytes) -> Sensitivity:
        return cls(*_SENSITIVITY.unpack(data))


_SENSITIVITY = struct.Struct('<3d')


def problem_of(view: WeightView, matrix: Any, metric: Metric | None, fit: FitOptions) -> StepProblem:
    """What is to be solved for a weight matrix ``(out, in)``; without a metric that is the identity."""
    blocks, output_weights = (
        (None, None) if metric is None else (metric.blocks, metric.output_weights.to(matrix.device))
    )
    return fit.stepper.problem(matrix, blocks, output_weights, view.kernel_size)


class Problems:
    """The factored problems of this process, made once and solved as often as a search asks for it.

    Args:
        job: the compression.
        metrics: of its weights, which the problems take the place of.
        log: of its work.
    """

    def __init__(self, job: Job, metrics: Metrics, log: WorkLog) -> None:
        self._job, self._metrics, self._log = job, metrics, log
        self._problems: dict[str, StepProblem] = {}
        self._written: dict[str, tuple[Encoded | None, EncodedWeight]] = {}
        self._turns = log.turns('fit')
        self.turns = 0

    def told_to(self, log: WorkLog) -> Problems:
        """The same problems, none of them factored again, whose further work is told to another log."""
        same = copy.copy(self)
        same._log, same._turns, same.turns = log, log.turns('fit'), 0
        return same

    def sensitivities(self) -> dict[str, Sensitivity]:
        """Of every weight, in every process."""

        def factor(view: WeightView, progress: Progress) -> Sensitivity:
            started = time.thread_time()
            problem = self._problem(view)
            return Sensitivity(problem.spread, problem.log_sensitivity, time.thread_time() - started)

        job = self._job
        tasks = [
            Task(
                view.name,
                _cube(view),
                partial(factor, view),
                job.owners[view.name],
                f'sensitivity {view.name}',
            )
            for view in job.views
        ]
        found = job.executor.run(tasks, Sensitivity.to_bytes, Sensitivity.from_bytes, self._log.stage('factor'))
        for view, its in zip(job.views, found):
            self._log.weight_seconds[view.name]['factor'] += its.seconds
        return {view.name: its for view, its in zip(job.views, found)}

    def solve(self, steps: Mapping[str, float], scale: float) -> EncodedWeights:
        """All weights at that scale of their steps, payloads made."""

        def solve(view: WeightView, step: float, progress: Progress) -> EncodedWeight:
            started = time.thread_time()
            encoded, distortion = self._problem(view).solve(step)
            encoded.to_payload()
            return EncodedWeight(encoded, distortion, time.thread_time() - started)

        self.turns += 1
        job, tasks = self._job, []
        for view in job.views:
            step = scale * steps[view.name]
            cost = math.prod(view.shape) * view.matrix_shape[1]
            tasks.append(
                Task(
                    view.name,
                    cost,
                    partial(solve, view, step),
                    job.owners[view.name],
                    f'solve {view.name} {step.hex()}',
                )
            )
        fit = job.settings.fit
        executor = replace(job.executor, threads=fit.stepper.useful_threads(job.executor.threads))
        counter = self._log.counter(len(job.own))
        with self._log.timed('solve'):
            return run_weights(executor, self._log, 'solve', tasks, next(self._turns), counter)

    def write(self, weights: EncodedWeights, on_progress: OnProgress | None = None) -> EncodedWeights:
        """The weights as the file holds them: with the digests of the decoded ones, and dense where that is smaller."""

        def write(view: WeightView, weight: EncodedWeight, progress: Progress) -> EncodedWeight:
            before = self._written.get(view.name)
            if before is not None and before[0] is weight.encoded:
                return replace(before[1], seconds=0.0)
            started = time.thread_time()
            tensor = job.state_dict[view.name]
            if weight.encoded is None or _cost(view, weight) < weight.encoded.payload_bits():
                return EncodedWeight.whole(view, tensor, None, None, 0.0)
            written = EncodedWeight.whole(view, tensor, parsed(weight.encoded), weight.distortion, 0.0)
            return replace(written, seconds=time.thread_time() - started)

        job = self._job
        tasks = [
            Task(view.name, 1, partial(write, view, weights[view.name]), job.owners[view.name]) for view in job.views
        ]
        written = run_weights(job.executor, self._log, 'write', tasks, on_progress)
        self._written = {name: (weights[name].encoded, weight) for name, weight in written.items()}
        return written

    def _problem(self, view: WeightView) -> StepProblem:
        if view.name not in self._problems:
            metric = self._metrics.take(view.name)
            self._problems[view.name] = problem_of(view, self._job.matrix(view), metric, self._job.settings.fit)
        return self._problems[view.name]


@dataclass(frozen=True, eq=False)
class _Found:
    """A scale, the weights at it, and the bits that the file may have."""

    scale: float
    weights: EncodedWeights
    limit: float = math.inf


class _Search:
    """The search for the scale that meets the budget.

    Args:
        job, metrics: the compression.
        frame: what the file holds besides the weights.
        problems: to be solved.
        log: of the work.
    """

    def __init__(self, job: Job, metrics: Metrics, frame: Frame, problems: Problems, log: WorkLog) -> None:
        self._job, self._metrics, self._frame, self._problems, self._log = job, metrics, frame, problems, log
        with log.timed('factor'):
            self._sensitivities = problems.sensitivities()
        measured = {view.name: view.name in metrics.sources for view in job.views}
        self._steps = relative_steps(self._sensitivities, measured)

    def for_budget(self) -> _Found:
        """By the budget that is given, or the default one."""
        budget = self._job.settings.budget
        if not budget.is_given:
            return self._for_default()
        tolerance = budget.tolerance
        found = self._for_bits(self._job.wanted_bits) if tolerance is None else self._for_error(tolerance)
        self._require_hope(found)
        return found

    def _require_hope(self, found: _Found) -> None:
        """Raise Hopeless where the predicted error is more than the job accepts."""
        error, most = self.predicted_error(found.weights), self._job.most_error
        if error > most:
            size = self._file_bits(self._for_error(HOPE * most).weights) // 8
            raise Hopeless(
                f'budget: expected a predicted error of the outputs of at most {most:g}, found {error:.2g}; '
                f'the smallest file that keeps to it has about {size:,} bytes',
                size,
            )

    def _for_default(self) -> _Found:
        found = self._for_error(DEFAULT_ERRORS[0])
        limit = DEFAULT_SIZE * 32 * self._job.numel
        if self._file_bits(found.weights) <= limit:
            return found
        most = DEFAULT_TUNED_ERROR if self._job.trained else DEFAULT_ERRORS[1]
        with contextlib.suppress(RiemError):  # what stays dense may be too much for that size
            sized = self._for_bits(limit)
            if self.predicted_error(sized.weights) <= most:
                return sized
        return self._for_error(most)

    def _for_error(self, tolerance: float) -> _Found:
        return _Found(*search(self._solve, self.predicted_error, tolerance, start=tolerance * 16, falls=False))

    def _for_bits(self, wanted: float) -> _Found:
        """The scale whose whole file has at most the bits that are wanted.

        Raises:
            RiemError: what stays dense has no room, or no step gives so small a file.
        """
        job, start = self._job, self._guess(wanted)
        rest = self._frame.rest_bits(job.expected_state, wanted / job.elements)
        excess, found = 0.0, None

        def measure(weights: EncodedWeights) -> float:
            return sum(_cost(view, weights[view.name]) for view in job.views) + rest + excess

        for _ in range(SIZINGS):  # what the records take is known once they are written
            if wanted <= rest + excess:
                break
            try:
                scale, weights = search(self._solve, measure, wanted, start)
            except RiemError:  # they take less where weights are coarser
                break
            written = self._file_bits(weights)
            if written <= wanted:
                found = _Found(scale, weights, wanted)
                if written >= CLOSE_ENOUGH * wanted:
                    break
            excess += written - measure(weights)
            start = scale
        return found or self._for_written(wanted, start)

    def _for_written(self, wanted: float, start: float) -> _Found:
        """As `_for_bits`, by files that are written in each turn of the search.

        Raises:
            RiemError: no step gives so small a file.
        """
        try:
            return _Found(*search(self._solve, self._file_bits, wanted, start), wanted)
        except RiemError as error:
            raise RiemError(
                f'budget: expected a file of {wanted / 8:.0f} bytes, found none of a step; ask for a larger ratio or '
                'more bits, or compress more of the weights'
            ) from error

    def predicted_error(self, weights: EncodedWeights) -> float:
        """Relative error of the outputs that the distortions of all weights with a metric add up to."""
        distortions = (weights[view.name].distortion for view in self._job.views if self._is_measured(view))
        return math.sqrt(sum(distortion for distortion in distortions if distortion is not None))

    def _is_measured(self, view: WeightView) -> bool:
        return view.name in self._metrics.sources

    def _solve(self, scale: float) -> EncodedWeights:
        return self._problems.solve(self._steps, scale)

    def _file_bits(self, weights: EncodedWeights) -> int:
        job = self._job
        with self._log.timed('size'):
            written = self._problems.write(weights)
            rate = average_bits(written, job.views, job.state_dict)
            return 8 * len(self._frame.archive(written, job.expected_state, rate).to_bytes())

    def _guess(self, wanted: float) -> float:
        """A first guess of the scale: as if the weights were Gaussian."""
        scale = 1.0
        for _ in range(40):
            rate = sum(
                math.prod(view.shape)
                * 0.5
                * math.log2(1 + 17 * (self._sensitivities[view.name].spread / (scale * self._steps[view.name])) ** 2)
                for view in self._job.views
            )
            scale = max(scale * 2 ** max((rate - wanted) / self._job.elements, -LARGEST_TURN), 2.0**-LARGEST_TURN)
        return min(max(scale, 1e-3), COARSEST)


def solve_steps(job: Job, metrics: Metrics, frame: Frame, log: WorkLog, problems: Problems) -> Solution:
    """Every weight with its step, all under one scale that meets the budget.

    Raises:
        RiemError: the budget is too small, or out of reach.
    """
    found = _Search(job, metrics, frame, problems, log).for_budget()
    with log.timed('write'):
        weights = problems.write(found.weights, log.stage('write'))
    return Solution(weights, found.limit, found.scale, problems.turns)


def _cube(view: WeightView) -> float:
    """Cost of factoring a metric."""
    return float(view.matrix_shape[1]) ** 3


def _cost(view: WeightView, weight: EncodedWeight) -> float:
    """Bits that a weight takes in the file: those of its states, or of the dense weight where these are less."""
    dense = DENSE_BITS * math.prod(view.shape) - RECORD_BITS
    return dense if weight.encoded is None else min(weight.encoded.payload_bits(), dense)
