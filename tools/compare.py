"""Compress detectors at several sizes, evaluate before and after; print one table and draw one picture.

    python tools/compare.py CONFIG [CONFIG ...] [--checkpoints FILE ...] --default --bits 0.5 1
    python tools/compare.py CONFIG [CONFIG ...] --representations sigmoid bilinear --ratios 0.10 0.19 0.30

The checkpoint of CONFIG is the .pth file of the same name beside it where --checkpoints does not name others.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from mmengine.config import Config
from rich.table import Table

from mmriem.benchmark.methods import MinMax
from mmriem.core import get_representation, representation_names
from mmriem.core.errors import RiemError
from mmriem.core.pipeline.settings import Settings
from mmriem.engine.command_line import run
from mmriem.engine.compression import METRICS, compress_detector
from mmriem.engine.config import STATED_ROOT, read_config, with_data_root
from mmriem.engine.detector import init_detector
from mmriem.engine.evaluation import evaluate
from mmriem.engine.outputs import Outputs
from mmriem.engine.progress import show_progress
from mmriem.engine.terminal import plain_console
from mmriem.visualization import cells, command_and_machine, draw_curves, machine, markdown, write_csv

COLUMNS = {
    'detector': '{}',
    'method': '{}',
    'asked': '{}',
    'bytes': '{:,}',
    'ratio': '{:.4f}',
    'mAP': '{:.3f}',
    'AP50': '{:.3f}',
    'SNR dB': '{}',
    'fit s': '{}',
    'test s': '{:.0f}',
}


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description='Compress detectors at several sizes and evaluate before and after')
    parser.add_argument('configs', nargs='+', help='configs, each with data to test on')
    parser.add_argument('--checkpoints', nargs='+', help='their .pth files (default: beside each config)')
    parser.add_argument('--representations', nargs='+', choices=representation_names(), default=representation_names())
    parser.add_argument('--default', action='store_true', help='what tools/compress.py does without a budget')
    parser.add_argument('--bits', nargs='+', type=float, default=[], help='bits of the file for each weight')
    parser.add_argument('--ratios', nargs='+', type=float, default=[], help='sizes of the file to the fp32 weights')
    parser.add_argument('--state-bits', nargs='+', type=int, default=[0], help='0: by the budget; the paper: 8')
    parser.add_argument('--effort', type=float, default=1.0)
    parser.add_argument('--tune', type=int, metavar='STEPS', help='see tools/compress.py')
    parser.add_argument('--metric', choices=METRICS, default=METRICS[0], help='see tools/compress.py')
    parser.add_argument('--threads', type=int, default=os.cpu_count(), help='weights fitted at a time')
    parser.add_argument('--rounding', nargs='+', type=int, default=[], metavar='BITS', help='beside it, plain rounding')
    parser.add_argument('--names', nargs='+', help='what table and picture call the detectors (default: their configs)')
    parser.add_argument('--out', default='work_dirs/compare', help='folder for the files and the table')
    parser.add_argument('--data-root', help=f'folder to use where a config says {STATED_ROOT}')
    parser.add_argument('--reuse', action='store_true', help='keep files of the same settings from an earlier run')
    return parser.parse_args()


def budgets_of(args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """The budgets that are asked for, as keywords of `Settings`, by what the table calls them."""
    budgets: dict[str, dict[str, float]] = {'default': {}} if args.default or not (args.bits or args.ratios) else {}
    budgets.update((f'{bits:g} bits', {'bits': bits}) for bits in args.bits)
    budgets.update((f'{ratio:.2f}', {'ratio': ratio}) for ratio in args.ratios)
    return budgets


def checkpoints_of(args: argparse.Namespace) -> list[str]:
    """One checkpoint for each config.

    Raises:
        RiemError: there are not as many as configs.
    """
    if args.checkpoints is None:
        return [str(Path(config).with_suffix('.pth')) for config in args.configs]
    if len(args.checkpoints) != len(args.configs):
        raise RiemError(
            f'--checkpoints: expected {len(args.configs)}, one for each config, found {len(args.checkpoints)}'
        )
    return args.checkpoints


def compressed(
    config: str, checkpoint: str, asked: str, settings: Settings, args: argparse.Namespace
) -> tuple[Outputs, dict]:
    """The outputs for these settings, and the report; made unless they are there and may be reused."""
    label = asked.replace(' ', '-')
    name = f'{Path(config).stem}-{settings.fit.representation}-{label}-{settings.fit.state_bits or "auto"}'
    tuned = '' if args.tune is None else f'-tuned-{args.tune}'
    outputs = Outputs(Path(args.out) / f'{name}{tuned}.riem')
    if args.reuse and outputs.report.is_file() and outputs.riem.is_file():
        report = json.loads(outputs.report.read_text(encoding='utf-8'))
        if report['totals']['bytes'] == outputs.riem.stat().st_size:
            return outputs, report
    outputs.check(force=True)
    with show_progress(name) as on_progress:
        report = compress_detector(
            config,
            checkpoint,
            outputs,
            settings,
            metric=args.metric,
            threads=args.threads,
            force=True,
            on_progress=on_progress,
        )
    return outputs, report


def row(detector: str, method: str, asked: Any, report: dict | None, metrics: dict[str, float], size: int) -> dict:
    """One row of the table; figures without a report are those of the original."""
    signal = [weight['snr_db'] for weight in report['weights'] if weight['snr_db']] if report else []
    return {
        'detector': detector,
        'method': method,
        'asked': asked,
        'bytes': size,
        'ratio': report['totals']['ratio'] if report else 1.0,
        'mAP': metrics.get('coco/bbox_mAP', 0.0),  # mmdet gives no figures where nothing is detected at all
        'AP50': metrics.get('coco/bbox_mAP_50', 0.0),
        'SNR dB': f'{statistics.median(signal):.1f}' if signal else '-',
        'fit s': f'{report["totals"]["wall_seconds"]:.0f}' if report else '-',
        'test s': metrics['seconds'],
    }


def names_of(args: argparse.Namespace) -> list[str]:
    """What each detector is called.

    Raises:
        RiemError: there are not as many names as configs.
    """
    names = args.names or [Path(config).stem for config in args.configs]
    if len(names) != len(args.configs):
        raise RiemError(f'--names: expected {len(args.configs)}, one for each config, found {len(names)}')
    return names


def rounded(name: str, cfg: Config, checkpoint: str, size: int, args: argparse.Namespace) -> Iterator[dict]:
    """The rows of plain rounding: levels between the least and the largest weight of each output channel."""
    method = MinMax()
    for bits in args.rounding:
        model = init_detector(cfg, checkpoint)
        with TemporaryDirectory() as folder:
            packed, dense = Path(folder) / 'packed', Path(folder) / 'dense.pth'
            method.encode(model, {'bits': bits}, packed)
            torch.save({'state_dict': method.decode(packed, model)}, dense)
            metrics, count = evaluate(cfg, dense, Path(args.out) / 'logs'), packed.stat().st_size
        yield {**row(name, 'plain rounding', f'{bits} bits', None, metrics, count), 'ratio': count / size}


def rows(config: str, checkpoint: str, name: str, args: argparse.Namespace) -> Iterable[dict]:
    """The rows of one detector: the original, then each budget with each representation, then plain rounding."""
    cfg = Config(with_data_root(read_config(config).to_dict(), args.data_root))
    work_dir = Path(args.out) / 'logs'
    original = evaluate(cfg, checkpoint, work_dir)
    size = None
    for (asked, budget), representation in itertools.product(budgets_of(args).items(), args.representations):
        report, metrics = None, {}
        for bits in args.state_bits if 'state_bits' in get_representation(representation).options else [0]:
            if report is None or not has_only(bits, report):
                told = {'state_bits': bits, 'effort': args.effort, 'tuning': args.tune}
                settings = Settings.of(representation=representation, **budget, **told)
                try:
                    outputs, report = compressed(config, checkpoint, asked, settings, args)
                except RiemError as error:  # too few bytes for this representation
                    print(f'left out: {name}, {representation} at {asked}: {error}', file=sys.stderr, flush=True)
                    break
                metrics = evaluate(cfg, outputs.riem, work_dir)
            if size is None:
                size = report['totals']['bytes_fp32']
                yield row(name, 'original, fp32', '-', None, original, size)
            method = f'mmriem {representation}, {bits}-bit states' if bits else f'mmriem {representation}'
            yield row(name, method, asked, report, metrics, report['totals']['bytes'])
    if size is not None:
        yield from rounded(name, cfg, checkpoint, size, args)


def has_only(bits: int, report: dict) -> bool:
    """Whether a file made with other settings has states of that many bits alone, so that it need not be made again."""
    return all(weight['settings']['state_bits'] == bits for weight in report['weights'] if weight['settings'])


def main() -> None:
    """Compare what the command line names."""
    args = parse_args()
    detectors = list(zip(args.configs, checkpoints_of(args), names_of(args)))
    folder = Path(args.out)
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    console = plain_console(160)
    for config, checkpoint, name in detectors:
        for entry in rows(config, checkpoint, name, args):
            found.append(entry)
            print('  '.join(cells(entry, COLUMNS)), file=sys.stderr, flush=True)
            write_csv(found, COLUMNS, folder / 'table.csv')
            text = f'{markdown(found, COLUMNS)}\n{command_and_machine()}'
            (folder / 'table.md').write_text(text, encoding='utf-8')
    if not found:
        raise RiemError('nothing to compare: expected a budget that some representation can meet, found none')
    draw_curves(found, folder / 'picture.png', log=True, zoom=True)
    table = Table(title=f'{folder / "table.md"}, picture.png ({machine()})', title_justify='left')
    for key, form in COLUMNS.items():
        table.add_column(key, justify='left' if form == '{}' and key in ('detector', 'method') else 'right')
    for entry in found:
        table.add_row(*cells(entry, COLUMNS))
    console.print(table)


if __name__ == '__main__':
    try:
        run(main)
    except KeyboardInterrupt:
        sys.exit('interrupted: finished files stay; run again with --reuse to go on')
