"""A ladder of sizes: files of one detector at several bits for each weight, measured once, in one table."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from rich.table import Table

from mmriem.core.atomic import write_whole
from mmriem.core.errors import Interrupted, RiemError
from mmriem.core.execution.executor import Executor
from mmriem.core.pipeline.ladder import Rung, climb
from mmriem.core.pipeline.progress import OnLayer, OnProgress
from mmriem.core.pipeline.settings import Budget, Settings
from mmriem.visualization import ladder_page
from mmriem.visualization.sheet import MOST

from .compression import (
    IDENTITY,
    PULLBACK,
    TASK,
    Opened,
    begin_journal,
    identity_of,
    judge_of,
    kept_on_failure,
    open_detector,
    require_metric_of_images,
    synthesised,
    write_outputs,
)
from .drawing import with_visualizer
from .expectation import HOPELESS, VERDICTS, expected_loss, verdict
from .judge import Checks, Judge, main_metric
from .loading_config import LoadingConfig
from .outputs import WRITING, Outputs
from .probe import build_probe
from .terminal import plain_console

__all__ = ['BITS', 'compress_ladder', 'print_ladder', 'recommended', 'rung_outputs']

BITS = (4.0, 3.0, 2.0, 1.5, 1.0)
"""Bits for each weight of the files of a ladder, where no others are asked for."""


def recommended(rows: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The smallest file of the best verdict that any file of the ladder has; None where that is no good one.

    >>> rows = [{'bytes': 9, 'verdict': 'visually lossless'}, {'bytes': 7, 'verdict': 'visually lossless'}]
    >>> recommended([*rows, {'bytes': 5, 'verdict': 'good'}])['bytes']
    7
    """
    for _, word in VERDICTS[:2]:
        its = [row for row in rows if row['verdict'] == word]
        if its:
            return min(its, key=lambda row: row['bytes'])
    return None


def rung_outputs(outputs: Outputs, bits: float) -> Outputs:
    """Where the file of so many bits is: `NAME-2bit.riem` beside `NAME.riem`."""
    return Outputs(outputs.riem.with_name(f'{outputs.riem.stem}-{bits:g}bit.riem'))


def compress_ladder(
    config: str,
    checkpoint: str,
    outputs: Outputs,
    settings: Settings,
    bits: Sequence[float],
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
) -> list[dict[str, Any]]:
    """Compress a detector to several sizes and write the outputs of each, and the table as `NAME.json` and
    `NAME.html`.

    Args:
        config, checkpoint: as for `compress_detector`, as are the arguments that are not named here.
        outputs: gives the names: see `rung_outputs`.
        settings: how; its budget is not used.
        bits: for each weight, of each file.

    Returns:
        A row for each size, largest first: `bits`, `bytes`, `file`, `predicted_error`, `verdict`, `expected`, and what
        `checks` ask for: `agreement` (AP, or how often the class is the same), `metric` with the names and the values
        `before` and `after`; those that were refused have `refused` in the place of a file.

    Raises:
        RiemError: an output is there, config and checkpoint do not fit, or every size is refused.
    """
    rungs = sorted(set(bits), reverse=True)
    every = [rung_outputs(outputs, rate) for rate in rungs]
    require_metric_of_images(metric, images, image_count, synthesis)
    for each in every:
        each.refuse_config(config)
    with outputs.held():
        outputs.check(force=force, resume=resume)
        for each in every:
            each.refuse_occupied(force=force or (resume and outputs.journal.holds(WRITING)))
        opened = open_detector(config, checkpoint, outputs, options=options, trust=trust, prefix=prefix)
        executor = Executor(threads)
        wanted = (image_count, settings.fit.seed, images, executor, synthesis, metric == TASK)
        probe = build_probe(opened.config, opened.model, *wanted) if metric != IDENTITY else None
        identity = identity_of(opened.config, opened.sha256, settings, metric, probe, device)
        judge = judge_of(checks, opened, outputs, settings, executor)
        journal = begin_journal(
            outputs, executor.workers, {**identity, 'ladder': rungs}, start_over=force and not resume
        )
        if probe is not None:
            on_progress = synthesised(probe, opened.model, replace(executor, journal=journal), device, on_progress)
        pictures = probe.pictures(opened.model, MOST) if probe is not None else []
        climbed = climb(
            opened.model,
            settings,
            [Budget(bits=rate) for rate in rungs],
            probe=probe,
            device=device,
            threads=threads,
            on_progress=on_progress,
            on_layer=on_layer,
            journal=journal,
            most_error=math.inf if allow_broken else HOPELESS,
            **opened.told,
        )
        try:
            rows = []
            for rate, each, rung in zip(rungs, every, climbed):
                with kept_on_failure():
                    journal.put(WRITING, b'')
                    told = {**identity, 'bits': rate}
                    report = _write(each, opened, rung, told, pictures, judge, force=force or resume)
                    rows.append(_row(rate, report, rung))
            if all('refused' in row for row in rows):
                raise RiemError(f'{rows[0]["bits"]:g} bits: {rows[0]["refused"]}')
            best = recommended([row for row in rows if 'refused' not in row])
            with kept_on_failure():
                write_whole(outputs.page, ladder_page(outputs.riem.stem, rows, best))
                write_whole(outputs.report, json.dumps({'ladder': rows}, indent=1) + '\n')
        except Interrupted:
            raise
        except RiemError:
            journal.remove()
            raise
        journal.remove()
        return rows


def print_ladder(rows: Sequence[Mapping[str, Any]]) -> None:
    """The table, and the size that is recommended."""
    written = [row for row in rows if 'refused' not in row]
    best = recommended(written)
    further = _further(written)
    table = Table()
    for heading in ('bits/weight', 'KB', 'of fp32', 'of fp16', 'predicted error', *further, 'verdict', 'file'):
        table.add_column(heading, justify='left' if heading in ('verdict', 'file') else 'right')
    for row in rows:
        if 'refused' in row:
            table.add_row(f'{row["bits"]:g}', *['-'] * (4 + len(further)), 'refused', '')
            continue
        smaller = [f'1/{row[size] / row["bytes"]:.1f}' for size in ('bytes_fp32', 'bytes_fp16')]
        error = '-' if row['predicted_error'] is None else f'{row["predicted_error"]:.2g}'
        mark = ' (recommended)' if row is best else ''
        measured = [told(row) for told in further.values()]
        size = f'{row["bytes"] / 1e3:,.1f}'
        table.add_row(f'{row["bits"]:g}', size, *smaller, error, *measured, row['verdict'] + mark, row['file'])
    console = plain_console(140 if further else 120)
    console.print(table)
    for row in rows:
        if 'refused' in row:
            console.print(f'{row["bits"]:g} bits: {row["refused"]}', soft_wrap=True)
    for row in written[:1]:
        if 'metric' in row:
            console.print(f'{row["metric"]["name"]} of the original: {row["metric"]["before"]:.4g}')
    if best is not None:
        console.print(f'{best["file"]}: {best["expected"]}', soft_wrap=True)


def _further(rows: Sequence[Mapping[str, Any]]) -> dict[str, Callable[[Mapping[str, Any]], str]]:
    """Columns of what was measured, and how a row fills them."""
    columns: dict[str, Callable[[Mapping[str, Any]], str]] = {}
    for row in rows[:1]:
        if 'metric' in row:
            columns[row['metric']['name'].rpartition('/')[2]] = lambda row: f'{row["metric"]["after"]:.4g}'
        if 'agreement' in row:
            columns['agreement'] = lambda row: '-' if row['agreement'] is None else f'{100 * row["agreement"]:.1f} %'
    return columns


def _write(
    outputs: Outputs,
    opened: Opened,
    rung: Rung,
    identity: Mapping[str, Any],
    pictures: Sequence[Any],
    judge: Judge | None,
    *,
    force: bool,
) -> dict[str, Any] | None:
    if rung.compressed is None:
        return None
    own = replace(opened, loading=LoadingConfig(with_visualizer(opened.config), outputs.riem.name))
    return write_outputs(outputs, own, rung.compressed, identity, pictures, judge, force=force)


def _row(bits: float, report: Mapping[str, Any] | None, rung: Rung) -> dict[str, Any]:
    if report is None:
        return {'bits': bits, 'refused': rung.refused}
    totals = report['totals']
    error = totals['predicted_error']
    return {
        'bits': bits,
        'file': report['file'],
        **{key: totals[key] for key in ('bytes', 'bytes_fp32', 'bytes_fp16', 'predicted_error')},
        'verdict': verdict(error),
        'expected': expected_loss(error),
        **_measured(report),
    }


def _measured(report: Mapping[str, Any]) -> dict[str, Any]:
    """What the report of a file says beyond its prediction."""
    told: dict[str, Any] = {}
    if agreement := report.get('agreement'):
        told['agreement'] = agreement['top1' if agreement['kind'] == 'classes' else 'AP']
    evaluation = report.get('evaluation')
    if evaluation and (name := main_metric(evaluation['before'])):
        told['metric'] = {'name': name, **{key: evaluation[key].get(name, 0.0) for key in ('before', 'after')}}
    return told
