"""From a config and a checkpoint to a `.riem` file, a config that loads it, and a report."""

from __future__ import annotations

import functools
import hashlib
import json
import math
import os
import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from rich.table import Table
from torch import nn

from mmriem.core.atomic import write_whole
from mmriem.core.errors import Hopeless, Interrupted, RiemError
from mmriem.core.execution.environment import arithmetic
from mmriem.core.execution.executor import Executor
from mmriem.core.execution.journal import Journal
from mmriem.core.execution.workers import Workers
from mmriem.core.file import writing
from mmriem.core.file.manifest import Source
from mmriem.core.images.synthesis import synthesis_share
from mmriem.core.live.convert import make_dense
from mmriem.core.live.module import holds_states
from mmriem.core.pipeline.compress import Compressed, compress
from mmriem.core.pipeline.progress import OnLayer, OnProgress
from mmriem.core.pipeline.reencode import reencode
from mmriem.core.pipeline.settings import Settings
from mmriem.core.weights.soundness import require_sound
from mmriem.version import __version__
from mmriem.visualization import report_page
from mmriem.visualization.sheet import MOST

from .checkpoint import load_into, read_checkpoint, without_prefix
from .config import read_config
from .detector import build_detector, dataset_meta
from .drawing import with_visualizer
from .expectation import HOPELESS, expected_by_agreement, notes, verdict
from .judge import Checks, Judge, main_metric
from .loading_config import LoadingConfig
from .outputs import WRITING, Outputs
from .probe import ConfigProbe, build_probe
from .provenance import made
from .terminal import plain_console

__all__ = [
    'METRICS',
    'Opened',
    'begin_journal',
    'compress_detector',
    'identity_of',
    'judge_of',
    'kept_on_failure',
    'open_detector',
    'print_report',
    'require_metric_of_images',
    'write_outputs',
]

PULLBACK, TASK, IDENTITY = METRICS = ('pullback', 'task', 'identity')


def _alone(compress: Callable[..., dict[str, Any] | None]) -> Callable[..., dict[str, Any] | None]:
    """Of several runs into the same outputs only the first one does it."""

    @functools.wraps(compress)
    def held(config: str, checkpoint: str, outputs: Outputs, *arguments: Any, **options: Any) -> dict[str, Any] | None:
        workers = options.get('workers')
        with outputs.held() if workers is None or workers.rank == 0 else nullcontext():
            return compress(config, checkpoint, outputs, *arguments, **options)

    return held


@_alone
def compress_detector(
    config: str,
    checkpoint: str,
    outputs: Outputs,
    settings: Settings,
    *,
    options: Mapping[str, Any] | None = None,
    metric: str = PULLBACK,
    images: str | os.PathLike | None = None,
    image_count: int = 0,
    synthesis: int | None = None,
    device: str = 'cpu',
    threads: int = 1,
    trust: bool = False,
    prefix: str = '',
    force: bool = False,
    resume: bool = False,
    allow_broken: bool = False,
    checks: Checks | None = None,
    on_progress: OnProgress | None = None,
    on_layer: OnLayer | None = None,
    workers: Workers | None = None,
) -> dict[str, Any] | None:
    """Compress a detector, or another model of MMEngine, and write the outputs; returns the report.

    All processes but the first get None. Finished weights are kept in the journal beside the outputs until these are
    written.

    The states of a trained RieM model are written as they are, and every other weight of it dense, unless `settings`
    has a budget: then all its weights are compressed anew.

    Args:
        config: path, or `PACKAGE::PATH`.
        checkpoint: a `.pth` file.
        outputs: where to write.
        settings: how to compress.
        options: overrides of the config by dotted keys.
        metric: `pullback`, from images that the detector runs on, `task`, the same with outputs weighted by what
            detection is judged by, or `identity`.
        images: a folder of images for the pullback metric instead of procedural ones.
        image_count: how many images; 0: by their size.
        synthesis: steps that procedural images are optimised by; 0: none; None: by what the detector is and takes.
        device: where the fit runs.
        threads: weights fitted at a time.
        trust: unpickle the checkpoint without protection.
        prefix: only what has a name in the checkpoint that begins with it, and without it.
        force: replace existing outputs, and start over where a journal is.
        resume: go on with the journal, if there is one.
        allow_broken: write the file also where its predicted error is hopeless.
        checks: what else is measured of the file.
        on_progress: called with the share that is done and the name of a weight.
        on_layer: called as a weight of this process is done.
        workers: the processes that share the work, each of which calls this.

    Raises:
        RiemError: config and checkpoint do not fit, or cannot be read, or the budget is too small for any file or for
            one that still works; the journal is of another compression; a process is gone.
    """
    workers = workers or Workers()
    if workers.rank == 0:
        outputs.check(force=force, resume=resume)
    require_metric_of_images(metric, images, image_count, synthesis)
    outputs.refuse_config(config)
    opened = open_detector(config, checkpoint, outputs, options=options, trust=trust, prefix=prefix)
    cfg, model, states, told = opened.config, opened.model, opened.states, opened.told
    is_trained = bool(states) and not settings.budget.is_given
    has_images = metric != IDENTITY and not is_trained
    if on_progress and has_images:
        on_progress(0.0, 'images')
    executor = Executor(threads, workers)
    wanted = (image_count, settings.fit.seed, images, executor, synthesis, metric == TASK)
    probe = build_probe(cfg, model, *wanted) if has_images else None
    identity = identity_of(cfg, opened.sha256, settings, metric, probe, device)
    finished = outputs.finished(identity) if resume and workers.rank == 0 else None
    if workers.exchange(b'' if finished is None else b'finished')[0]:
        return None if finished is None else _ended(outputs, finished)
    if resume and workers.rank == 0 and not outputs.journal.holds(WRITING):
        outputs.refuse_occupied(force=force)
    judge = judge_of(checks, opened, outputs, settings, executor) if workers.rank == 0 else None
    journal = begin_journal(outputs, workers, identity, start_over=force and not resume)
    try:
        if is_trained:
            encoded = {name: weight.encoded() for name, weight in states.items()}
            compressed: Compressed | None = reencode(
                model, {name: kept for name, kept in encoded.items() if kept is not None}, **told
            )
        else:
            if probe is not None:
                on_progress = synthesised(probe, model, replace(executor, journal=journal), device, on_progress)
            compressed = compress(
                model,
                settings,
                probe=probe,
                device=device,
                threads=threads,
                on_progress=on_progress,
                on_layer=on_layer,
                workers=workers,
                journal=journal,
                most_error=math.inf if allow_broken else HOPELESS,
                **told,
            )
    except Interrupted:
        raise
    except Hopeless as error:
        if workers.rank == 0:
            journal.remove()
        raise RiemError(f'{error}: --size {_rounded_up(error.size)}, or --allow-broken to write this one') from error
    except RiemError:
        if workers.rank == 0:
            journal.remove()  # the same settings would end in the same error
        raise
    if workers.rank > 0 or compressed is None:
        workers.exchange(b'')
        journal.remove()
        return None
    pictures = probe.pictures(model, MOST) if probe is not None else []
    with kept_on_failure():
        journal.put(WRITING, b'')
        report = write_outputs(outputs, opened, compressed, identity, pictures, judge, force=force or resume)
    workers.exchange(b'')
    journal.remove()
    return report


@dataclass(frozen=True, eq=False)
class Opened:
    """A detector that is to be compressed.

    Attributes:
        source: what the user calls config and checkpoint.
        config: as it is read.
        loading: the config that is written beside the file.
        model: with dense weights.
        states: of weights that had states in the checkpoint.
        told: what the file says of it.
        sha256: of the checkpoint.
    """

    source: tuple[str, str]
    config: Config
    loading: LoadingConfig
    model: nn.Module
    states: Mapping[str, Any]
    told: dict[str, Any]
    sha256: str


def open_detector(
    config: str,
    checkpoint: str,
    outputs: Outputs,
    *,
    options: Mapping[str, Any] | None = None,
    trust: bool = False,
    prefix: str = '',
) -> Opened:
    """Read config and checkpoint, and build the detector; the arguments are those of `compress_detector`.

    Raises:
        RiemError: they do not fit, or cannot be read, or values are not finite.
    """
    cfg = read_config(config, options)
    loading = LoadingConfig(with_visualizer(cfg), outputs.riem.name)
    read = read_checkpoint(checkpoint, trust=trust)
    model = build_detector(cfg)
    if not holds_states(read.state_dict):
        make_dense(model)  # so that its weights are compressed, and not fitted while they are loaded
    state_dict = without_prefix(read.state_dict, prefix, checkpoint) if prefix else read.state_dict
    load_into(model, state_dict, checkpoint)
    state_dict.clear()
    read.state_dict.clear()  # as large as the model
    told = dict(dataset_meta=dataset_meta(cfg, read.dataset_meta), source=Source(Path(checkpoint).name, read.sha256))
    states = make_dense(model)
    require_sound(model)
    return Opened((str(config), str(checkpoint)), cfg, loading, model, states, told, read.sha256)


def write_outputs(
    outputs: Outputs,
    opened: Opened,
    compressed: Compressed,
    identity: Mapping[str, Any],
    pictures: Sequence[Any] = (),
    judge: Judge | None = None,
    *,
    force: bool,
) -> dict[str, Any]:
    """Write file, config and reports; returns the report.

    Args:
        outputs: where.
        opened: what was compressed.
        compressed: into what.
        identity: what the compression depends on.
        pictures: of the images that the detector was run on, for the page.
        judge: measures the file.
        force: replace an existing file.
    """
    config, checkpoint = opened.source
    report = {
        'file': outputs.riem.name,
        'source': {'config': config, 'checkpoint': checkpoint, 'sha256': opened.sha256},
        **compressed.report,
    }
    report['notes'] = notes(report)
    if report['settings'].get('states') != 'as trained':
        report['verdict'] = verdict(report['totals']['predicted_error'])
    report['made'] = made(report)
    started = time.perf_counter()
    writing.write(outputs.riem, compressed.archive, force=force)
    report['totals']['stages']['file'] = round(time.perf_counter() - started, 3)
    opened.loading.write(outputs.config)
    told, worst = judge.judge(compressed.archive, outputs.riem) if judge is not None else ({}, [])
    report.update(told)
    report['notes'] += [*expected_by_agreement(report.get('agreement')), *measured(report)]
    write_whole(outputs.page, report_page({**report, 'evaluate': _evaluation(outputs)}, pictures, worst))
    report.update(outputs.signature(identity))
    write_whole(outputs.report, json.dumps(report, indent=1) + '\n')  # the last one, as it says that all are there
    return report


def judge_of(
    checks: Checks | None, opened: Opened, outputs: Outputs, settings: Settings, executor: Executor
) -> Judge | None:
    """What measures the files of an original; None where nothing is asked for.

    Raises:
        RiemError: see `Judge`.
    """
    if checks is None or not (checks.agree or checks.evaluate):
        return None
    checkpoint = opened.source[1]
    model = opened.model
    model.dataset_meta = opened.told['dataset_meta']  # names of classes
    return Judge(checks, opened.config, checkpoint, model, outputs, settings.fit.seed, executor)


@contextmanager
def kept_on_failure() -> Iterator[None]:
    """Within, the journal holds everything that the outputs are made of, as errors say."""
    try:
        yield
    except RiemError as error:
        raise Interrupted(f'{error}; what is finished is kept, go on with --resume') from error


def _ended(outputs: Outputs, report: dict[str, Any]) -> dict[str, Any]:
    """The report of outputs that an earlier run has finished, perhaps not its journal."""
    journal = outputs.journal
    if journal.exists():
        journal.begin(report['identity'])  # refuses that of another compression
        journal.remove()
    return {**report, 'notes': [*report['notes'], 'all outputs were there: nothing was left to do']}


def synthesised(
    probe: ConfigProbe, model: nn.Module, executor: Executor, device: str, on_progress: OnProgress | None
) -> OnProgress | None:
    """Optimise the images of a probe; returns what shows the progress of the rest."""
    share = synthesis_share(probe.describe().get('steps', 0))

    def advance(first: float, last: float, done: float, name: str) -> None:
        if on_progress:
            on_progress(first + (last - first) * done, name)

    probe.synthesise(model, executor, device, lambda done: advance(0.0, share, done, 'images'))
    return on_progress and partial(advance, share, 1.0)


def require_metric_of_images(
    metric: str, images: str | os.PathLike | None, image_count: int, synthesis: int | None
) -> None:
    """Refuse what is said of images where the metric needs none; the arguments are those of `compress_detector`.

    Raises:
        RiemError: that.
    """
    if metric == IDENTITY and (images is not None or image_count or synthesis):
        raise RiemError(
            f'--images, --image-count, --synthesis: expected with --metric {PULLBACK}, found --metric {metric}'
        )


def begin_journal(outputs: Outputs, workers: Workers, identity: Mapping[str, Any], *, start_over: bool) -> Journal:
    """The journal, which all processes of a machine have in common, and all of those that see the same folder.

    Raises:
        RiemError: it is of another compression, or a process differs in what finished weights depend on.
    """
    journal = outputs.journal
    if workers.rank > 0:
        outputs.riem.parent.mkdir(parents=True, exist_ok=True)
        if start_over:
            journal.remove()
    first = json.loads(workers.exchange(json.dumps(identity).encode())[0])
    for key, value in json.loads(json.dumps(identity)).items():
        if value != first.get(key):
            raise RiemError(
                f'process {workers.rank} of {workers.size}: expected {key} {first.get(key)} as in the first one, found '
                f'{value}; start them on the same input and on like machines'
            )
    for is_first in (True, False):  # the first process makes the folder, the others find it
        if is_first == (workers.rank == 0):
            journal.begin(identity)
        workers.exchange(b'')
    return journal


def identity_of(
    config: Config, checkpoint: str, settings: Settings, metric: str, probe: ConfigProbe | None, device: str
) -> dict[str, Any]:
    """What a compression depends on: only where all of it is the same, finished weights are."""
    images = {} if probe is None else {**probe.describe(), 'sha256': probe.digest()}
    return {
        'mmriem': __version__,
        **arithmetic(device),
        'config': hashlib.sha256(json.dumps(config.to_dict(), default=repr).encode()).hexdigest(),
        'checkpoint': checkpoint,
        'metric': metric,
        'device': torch.device(device).type,
        **{key.replace('_', ' '): value for key, value in settings.options().items()},
        **{f'images: {key}': value for key, value in images.items()},
    }


def print_report(report: Mapping[str, Any], outputs: Outputs) -> None:
    """The closing table: one row for each part of the detector, and the totals."""
    table = Table(title=f'{outputs.riem}', title_justify='left')
    for heading in (
        'part',
        'weights',
        'elements',
        'KB fp32',
        'KB',
        'bits/weight',
        'SNR dB, worst',
        'seconds',
    ):
        table.add_column(heading, justify='left' if heading == 'part' else 'right')
    parts: dict[str, list[dict[str, Any]]] = {}
    for weight in report['weights']:
        parts.setdefault(weight['name'].split('.')[0], []).append(weight)
    for name, weights in parts.items():
        elements = sum(_numel(weight) for weight in weights)
        bits = sum(weight['bits'] for weight in weights)
        decibels = [weight['snr_db'] for weight in weights if weight['snr_db'] is not None]
        table.add_row(
            name,
            f'{len(weights)}',
            f'{elements:,}',
            f'{4 * elements / 1e3:,.1f}',
            f'{bits / 8e3:,.1f}',
            f'{bits / elements:.2f}',
            f'{min(decibels):.1f}' if decibels else '-',
            f'{sum(weight["seconds"] for weight in weights):.1f}',
        )
    totals = report['totals']
    others = totals['bytes'] - sum(weight['bits'] for weight in report['weights']) / 8
    rest = totals['bytes_fp32'] - 4 * sum(_numel(weight) for weight in report['weights'])
    table.add_row('norms, biases, records', '', '', f'{rest / 1e3:,.1f}', f'{others / 1e3:,.1f}', '', '', '')
    console = plain_console(120)
    console.print(table)
    console.print(
        f'{totals["bytes"]:,} bytes: {totals["ratio"]:.4f} of fp32 ({totals["bytes_fp32"]:,} bytes), '
        f'{totals["bytes"] / totals["bytes_fp16"]:.4f} of fp16, {totals["bits_per_weight"]:.2f} bits per weight',
    )
    said = [report['agreement']['said']] if 'agreement' in report else []
    for note in [*report['notes'], *said]:
        console.print(note, soft_wrap=True)
    console.print(f'look at: {outputs.page}', soft_wrap=True)
    console.print(f'evaluate: {_evaluation(outputs)}', soft_wrap=True)


def measured(report: Mapping[str, Any]) -> list[str]:
    """A sentence on the metric of the test set, where it was measured."""
    evaluation: Any = report.get('evaluation')
    name = main_metric(evaluation['before']) if evaluation else None
    if name is None:
        return []
    before, after = evaluation['before'][name], evaluation['after'].get(name, 0.0)
    return [f'on the test set {name} is {before:.4g} before and {after:.4g} after']


def _evaluation(outputs: Outputs) -> str:
    return shlex.join(['python', '-m', 'mmriem', 'test', str(outputs.config), str(outputs.riem)])


def _rounded_up(size: int) -> str:
    """A size for the command line, in three digits and not below.

    >>> _rounded_up(1_234_001), _rounded_up(99_901), _rounded_up(123)
    ('1240kB', '100kB', '123')
    """
    step = 10 ** max(0, len(str(size)) - 3)
    whole = -(-size // step) * step
    return f'{whole // 1000}kB' if whole % 1000 == 0 else f'{whole}'


def _numel(weight: Mapping[str, Any]) -> int:
    numel = 1
    for size in weight['shape']:
        numel *= size
    return numel
