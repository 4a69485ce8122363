"""The pipeline, stage by stage: measure, solve within the budget, correct, archive, report."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from ..errors import RiemError
from ..execution.executor import Executor
from ..execution.journal import Journal
from ..execution.workers import Workers
from ..file.archive import Archive
from ..file.manifest import Source
from ..images.probe import Probe
from ..weights.soundness import require_sound
from .archiving import Frame, archive_within
from .correct import Original, correct
from .encoded_weight import average_bits
from .job import Job, trainable
from .measure import Metrics, measure
from .progress import OnLayer, OnProgress, WorkLog
from .report import compression_report
from .room import require_room
from .settings import Settings
from .solve import Solution, solve_planned, unpack
from .solve_steps import Problems, solve_steps

DEFAULT_RATIO = 0.19
"""Size of a file over the fp32 weights where no budget is given and no images tell what is lost: the paper's."""
DEFAULT_TUNING = 300
"""Steps of tuning where no budget is given and images are small, so that it takes seconds or a few minutes."""
SMALL_IMAGE = 1 << 15
"""Most pixels of an image that counts as small."""


@dataclass(frozen=True)
class Compressed:
    """The archive to write, and a JSON-able report: ``weights`` (one entry each) and ``totals``."""

    archive: Archive
    report: dict[str, Any]

    def __repr__(self) -> str:
        totals = self.report['totals']
        return (
            f'<Compressed: {totals["weights"]} weights in {totals["bytes"]:,} bytes, '
            f'{totals["bytes_fp32"] / totals["bytes"]:.1f} times smaller than fp32>'
        )


def compress(
    model: nn.Module,
    settings: Settings,
    *,
    dataset_meta: Mapping[str, Any],
    source: Source,
    probe: Probe | None = None,
    device: str = 'cpu',
    threads: int = 1,
    on_progress: OnProgress | None = None,
    on_layer: OnLayer | None = None,
    workers: Workers | None = None,
    journal: Journal | None = None,
    most_error: float = math.inf,
) -> Compressed | None:
    """Compress the weights of ``model``; everything else of its state dict stays dense or is derived.

    The result depends on the model, the settings and the probe only, not on ``threads``, ``workers`` or what was in
    the journal before.

    Args:
        model: any module; it is not changed.
        settings: how.
        dataset_meta: class names and the like, for the file.
        source: the checkpoint, for the file.
        probe: images to run the model on; without one every weight has the identity as its metric, and norms and
            biases stay as they are.
        device: where fits and the probe run.
        threads: pieces of work at a time.
        on_progress: called with the share of the work done and the name of a weight or a stage; of several processes,
            of the share of this one.
        on_layer: called as a weight of this process is done.
        workers: the processes that share the work, each of which calls this; None is this one alone.
        journal: keeps finished weights; those that it holds are not done again. It must have begun.
        most_error: predicted relative error of the outputs above which a budget is refused, where it can be predicted.

    Returns:
        What is to be written; None in all processes but the first.

    Raises:
        RiemError: nothing to compress, a pattern without a match, a budget that is too small, or a process is gone.
        Hopeless: the budget leads to more than ``most_error``.
    """
    prepared = prepare(
        model,
        settings,
        dataset_meta=dataset_meta,
        source=source,
        probe=probe,
        device=device,
        threads=threads,
        on_progress=on_progress,
        on_layer=on_layer,
        workers=workers,
        journal=journal,
        most_error=most_error,
    )
    require_room(prepared.job, prepared.frame)
    metrics = measure(prepared.job, probe, prepared.log)
    solution = solve(prepared, metrics)
    return complete(prepared, metrics, solution, probe)


@dataclass(frozen=True, eq=False)
class Prepared:
    """A compression before its first stage: what is done, what the file holds besides, and the log of the work."""

    job: Job
    frame: Frame
    log: WorkLog
    started: float


def prepare(
    model: nn.Module,
    settings: Settings,
    *,
    dataset_meta: Mapping[str, Any],
    source: Source,
    probe: Probe | None = None,
    device: str = 'cpu',
    threads: int = 1,
    on_progress: OnProgress | None = None,
    on_layer: OnLayer | None = None,
    workers: Workers | None = None,
    journal: Journal | None = None,
    most_error: float = math.inf,
) -> Prepared:
    """Fill in defaults, and find the weights; the arguments are those of :func:`compress`."""
    started = time.perf_counter()
    require_sound(model)
    settings = with_defaults(settings, model, probe)
    executor = Executor(threads, workers or Workers(), journal)
    job = Job.of(model, settings, probe, device, executor, most_error)
    images = {} if probe is None else {'images': probe.describe()}
    recorded = {**settings.recorded(), **images}
    frame = Frame(model, job.views, settings.selection, dict(dataset_meta), source, recorded)
    log = WorkLog(_efforts(settings, probe is not None), job.owners, on_progress, on_layer)
    return Prepared(job, frame, log, started)


def solve(prepared: Prepared, metrics: Metrics, problems: Problems | None = None) -> Solution:
    """States for each weight within the budget; ``problems`` that are factored already are not factored again."""
    job, frame, log = prepared.job, prepared.frame, prepared.log
    require_room(job, frame)
    if not job.settings.fit.kind.stepper:
        return solve_planned(job, metrics, frame, log)
    return solve_steps(job, metrics, frame, log, problems or Problems(job, metrics, log))


def complete(
    prepared: Prepared, metrics: Metrics, solution: Solution, probe: Probe | None, original: Original | None = None
) -> Compressed | None:
    """The stages after the solution: correct, archive, report. None in all processes but the first."""
    job, frame, log = prepared.job, prepared.frame, prepared.log
    original = original or Original(job, probe)
    if job.executor.workers.rank:
        original.tell()
        return None
    weights = unpack(job, solution.weights, log)
    corrected = correct(job, weights, probe, log, original)
    with log.timed('archive'):
        rate = average_bits(weights, job.views, job.state_dict)
        fitting = archive_within(frame, weights, corrected.state_dict, job.state_dict, rate, solution.limit)
    report = compression_report(fitting, job, metrics, solution, corrected.tuned, log)
    report['totals']['wall_seconds'] = time.perf_counter() - prepared.started
    return Compressed(fitting.archive, report)


def with_defaults(settings: Settings, model: nn.Module, probe: Probe | None) -> Settings:
    """The settings with a budget and a number of training steps.

    Raises:
        RiemError: they need images, and there are none.
    """
    budget, kind = settings.budget, settings.fit.kind
    is_default = not budget.is_given
    if is_default and not (kind.stepper is not None and probe is not None):
        settings = settings.changed(ratio=DEFAULT_RATIO)
        is_default = False
    if budget.tolerance is not None and probe is None:
        raise RiemError('tolerance: expected images that the network runs on, found none; give bits, ratio or size')
    if settings.corrections.tuning is None:
        is_short = is_default and probe is not None and probe.pixels <= SMALL_IMAGE
        steps = DEFAULT_TUNING if is_short and trainable(model, settings.selection) else 0
        settings = settings.changed(tuning=steps)
    if settings.corrections.tuning and probe is None:
        raise RiemError('tuning: expected images that the network runs on, found none; leave tuning out')
    return settings


def _efforts(settings: Settings, has_images: bool) -> dict[str, float]:
    """What each stage roughly takes."""
    has_steps, corrections = settings.fit.kind.stepper is not None, settings.corrections
    return {
        'images': 30 * has_images,
        'factor': 15 * has_steps,
        'fit': 40,
        'write': 5 * has_steps,
        'recalibrate': 5 * (has_images and corrections.recalibration),
        'tune': 0.3 * (corrections.tuning or 0) * has_images,
    }
