"""Seconds of compressing, decoding, loading and inference for a list of detectors, side by side in one run.

    python tools/measure/speed.py CONFIG [CONFIG ...] --out docs/benchmarks/speed

Weights are random ones unless --checkpoints gives a file for each config. Writes NAME.md and NAME.csv: a row for each
detector, the share of each stage of compression, and the seconds of each size of weight.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.logging import MMLogger
from torch import nn

from mmriem.benchmark.table import SPEED_COLUMNS
from mmriem.core import representation_names
from mmriem.core.errors import RiemError
from mmriem.core.file import reading
from mmriem.core.live.convert import make_live
from mmriem.core.pipeline.settings import Settings
from mmriem.engine.checkpoint import load_into, read_checkpoint
from mmriem.engine.command_line import run
from mmriem.engine.compression import METRICS, compress_detector
from mmriem.engine.config import read_config
from mmriem.engine.detector import build_detector
from mmriem.engine.outputs import Outputs
from mmriem.engine.scheme import load_from_riem
from mmriem.visualization import command_and_machine, markdown, write_csv

SIZES = {
    'network': '{}',
    'rows': '{}',
    'columns': '{}',
    'weights': '{}',
    's each': '{:.3f}',
    'predicted s': '{:.3f}',
    'us/element': '{:.2f}',
}
ONCE = """
import sys, time, torch
from mmriem.core.file import reading

torch.set_num_threads(int(sys.argv[2]))
started = time.perf_counter()
{}
print(time.perf_counter() - started)
"""
"""A new process that reads one file."""
READ_RIEM = 'reading.read(sys.argv[1]).decode()'
READ_PTH = "torch.load(sys.argv[1], map_location='cpu', weights_only=True)"
Row = dict[str, Any]


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description='Time compression, loading and inference of detectors')
    parser.add_argument('configs', nargs='+', metavar='CONFIG', help='a config file, or mmdet::FOLDER/NAME.py')
    parser.add_argument('--checkpoints', nargs='+', metavar='FILE', help='of the configs (default: random weights)')
    parser.add_argument('--representation', choices=representation_names(), default='lattice')
    parser.add_argument('--bits', type=float, default=2.0, help='of the file for each weight (default: 2)')
    parser.add_argument('--include', nargs='+', default=['*'], metavar='PATTERN', help='weights to compress')
    parser.add_argument('--metric', choices=METRICS, default=METRICS[0])
    parser.add_argument('--threads', type=int, default=os.cpu_count(), help='of compression, decoding and inference')
    parser.add_argument('--shape', type=int, nargs=2, default=(800, 1333), metavar='N', help='of the image')
    parser.add_argument('--repeats', type=int, default=5, help='of each measurement; the table has the median')
    parser.add_argument('--out', help='NAME of NAME.md and NAME.csv')
    return parser.parse_args()


def seconds(work: Callable[[], Any], repeats: int, before: Callable[[], None] = lambda: None) -> float:
    """Median of wall seconds; ``before`` is called, not timed, ahead of each."""
    found = []
    for _ in range(repeats):
        before()
        started = time.perf_counter()
        work()
        found.append(time.perf_counter() - started)
    return statistics.median(found)


def forget(path: Path) -> None:
    """Take a file out of the page cache, where the system offers that."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def write_fp32(config: Config, checkpoint: str | None, path: Path) -> None:
    """A checkpoint of that file in fp32, or of random weights by the initialisers of the config's modules."""
    model = build_detector(config)
    if checkpoint is None:
        torch.manual_seed(0)
        for module in model.modules():
            if isinstance(start := getattr(module, 'init_cfg', None), dict) and start.get('type') == 'Pretrained':
                module.init_cfg = None
        model.init_weights()
    else:
        load_into(model, read_checkpoint(checkpoint).state_dict, checkpoint)
    torch.save({'state_dict': model.float().state_dict(), 'meta': {}}, path)


def once(work: str, path: Path) -> float:
    """Seconds that reading a file takes in a process that has done nothing yet: the memory is new to it, too."""
    command = [sys.executable, '-c', ONCE.format(work), str(path), str(torch.get_num_threads())]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def loading(pth: Path, riem: Path, repeats: int) -> Row:
    """Seconds of reading both files: warm, cold where the system can forget a file, and in new processes, warm."""
    archive = reading.read(riem)
    row = {
        'read s': seconds(lambda: reading.read(riem), repeats),
        'decode s': seconds(archive.decode, repeats),
        'load s': seconds(lambda: load_from_riem(str(riem)), repeats),
        'torch.load s': seconds(lambda: torch.load(pth, map_location='cpu', weights_only=True), repeats),
        'load s, cold': None,
        'torch.load s, cold': None,
    }
    if hasattr(os, 'posix_fadvise'):
        row['load s, cold'] = seconds(lambda: load_from_riem(str(riem)), repeats, lambda: forget(riem))
        row['torch.load s, cold'] = seconds(
            lambda: torch.load(pth, map_location='cpu', weights_only=True), repeats, lambda: forget(pth)
        )
    turns = [(once(READ_RIEM, riem), once(READ_PTH, pth)) for _ in range(repeats)]
    row['load s, new process'], row['torch.load s, new process'] = map(statistics.median, zip(*turns))
    return row


def inference(config: Config, riem: Path, names: Sequence[str], shape: tuple[int, int], repeats: int) -> Row:
    """Seconds of an image of random pixels through the detector, with dense weights and with live modules in turns."""
    state_dict = load_from_riem(str(riem))['state_dict']
    dense, live = build_detector(config), build_detector(config)
    make_live(live, representation='lattice', include=names)
    for model in (dense, live):
        load_into(model.eval(), state_dict, riem)
    pixels = torch.randint(0, 256, (3, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))

    @torch.no_grad()
    def look(model: nn.Module) -> None:
        sample = DetDataSample(metainfo=dict(img_shape=shape, ori_shape=shape, scale_factor=(1.0, 1.0)))
        model.test_step({'inputs': [pixels], 'data_samples': [sample]})

    look(dense)
    first = seconds(lambda: look(live), 1)
    turns = [(seconds(lambda: look(dense), 1), seconds(lambda: look(live), 1)) for _ in range(repeats)]
    return {
        'dense s/image': statistics.median(one for one, _ in turns),
        'live s/image': statistics.median(other for _, other in turns),
        'live, first s': first,
    }


def measure(name: str, checkpoint: str | None, args: argparse.Namespace, folder: Path) -> tuple[Row, Row, list[Row]]:
    """The row of a detector, the seconds of its stages, and the rows of its sizes of weights."""
    config, short = read_config(name), Path(name).stem
    pth, outputs = folder / f'{short}.pth', Outputs.named(folder / f'{short}.riem', name, f'{short}.pth')
    write_fp32(config, checkpoint, pth)
    settings = Settings.of(representation=args.representation, bits=args.bits, include=tuple(args.include))
    report = compress_detector(name, str(pth), outputs, settings, metric=args.metric, threads=args.threads, force=True)
    totals = report['totals']
    weights = [weight for weight in report['weights'] if weight['seconds_of_stage']]
    row = {
        'network': short,
        'weights': totals['weights'],
        'elements': totals['represented_elements'],
        'bytes': totals['bytes'],
        'encode s': totals['wall_seconds'],
        'encode us/element': 1e6 * totals['wall_seconds'] / max(1, totals['represented_elements']),
        **loading(pth, outputs.riem, args.repeats),
        **inference(config, outputs.riem, [weight['name'] for weight in weights], tuple(args.shape), args.repeats),
    }
    return row, {'network': short, **totals['stages']}, sizes(short, weights)


def sizes(network: str, weights: Sequence[Mapping[str, Any]]) -> list[Row]:
    """A row for each size of weight matrix, the largest first: whether cost grows with size as predicted."""
    groups: dict[tuple[int, int], list[Mapping[str, Any]]] = {}
    for weight in weights:
        out, *inner = weight['shape']
        groups.setdefault((out, math.prod(inner)), []).append(weight)
    rows = []
    for (out, columns), group in sorted(groups.items(), key=lambda item: -math.prod(item[0])):
        mean = statistics.mean(weight['seconds'] for weight in group)
        predicted = [weight['predicted_seconds'] for weight in group if weight['predicted_seconds'] is not None]
        rows.append(
            {
                'network': network,
                'rows': out,
                'columns': columns,
                'weights': len(group),
                's each': mean,
                'predicted s': statistics.mean(predicted) if predicted else None,
                'us/element': 1e6 * mean / (out * columns),
            }
        )
    return rows


def shares(stages: Sequence[Row]) -> tuple[list[Row], dict[str, str]]:
    """Percent of the seconds of all stages of a network, and the columns of that table."""
    names = list(dict.fromkeys(key for row in stages for key in row if key != 'network'))
    rows = []
    for row in stages:
        total = sum(row.get(name, 0.0) for name in names) or 1.0
        rows.append({'network': row['network'], **{name: 100 * row.get(name, 0.0) / total for name in names}})
    return rows, {'network': '{}', **dict.fromkeys(names, '{:.0f} %')}


def write(rows: Sequence[Row], stages: Sequence[Row], by_size: Sequence[Row], out: str) -> None:
    """All tables as Markdown, and that of the networks as CSV."""
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    parts = (markdown(rows, SPEED_COLUMNS), markdown(*shares(stages)), markdown(by_size, SIZES), command_and_machine())
    Path(f'{out}.md').write_text('\n'.join(parts), encoding='utf-8')
    write_csv(rows, SPEED_COLUMNS, f'{out}.csv')


def main() -> None:
    """Measure one network after the other, and write the tables anew after each."""
    args = parse_args()
    checkpoints = args.checkpoints or [None] * len(args.configs)
    if len(checkpoints) != len(args.configs):
        raise RiemError(
            f'--checkpoints: expected one for each of {len(args.configs)} configs, found {len(checkpoints)}'
        )
    torch.set_num_threads(max(1, args.threads))
    MMLogger.get_current_instance().setLevel('WARNING')  # initialisers log every parameter
    rows, stages, by_size = [], [], []
    with tempfile.TemporaryDirectory() as folder:
        for name, checkpoint in zip(args.configs, checkpoints):
            print(f'{name}: compress, load, look', file=sys.stderr, flush=True)
            row, its_stages, its_sizes = measure(name, checkpoint, args, Path(folder))
            rows.append(row)
            stages.append(its_stages)
            by_size += its_sizes
            print(markdown([row], SPEED_COLUMNS), flush=True)
            if args.out:
                write(rows, stages, by_size, args.out)


if __name__ == '__main__':
    run(main)
