"""Seconds of compressing, decoding, loading and inference for a list of detectors, side by side in one run.

    python tools/measure/speed.py CONFIG [CONFIG ...] --out docs/benchmarks/speed

Weights are random ones unless --checkpoints gives a file for each config. Writes NAME.md and NAME.csv: a row for each
detector, the share of each stage of compression, the seconds of each size of weight; seconds of an image with dense,
live and compressed weights, in turns; and memory, each figure from a new process.

Memory of weights is the growth of what the process has resident, from the built network, whose parameters are not
written to yet, to the loaded one. The peak is that of the whole process, after two images. The seconds to the first
detection begin with building the network and end with the boxes of an image; imports are done.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
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
from mmriem.core.execution.memory import release_memory
from mmriem.core.file import reading
from mmriem.core.live.blank import BlankParameters
from mmriem.core.live.compressed import load_compressed
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
WAYS = ('dense', 'live', 'compressed')
"""How a detector holds its weights."""
IMAGES = {
    'network': '{}',
    'image': '{}',
    'threads': '{}',
    **{f'{way} s/image': '{:.3f}' for way in WAYS},
    'compressed / dense': '{:.2f}',
    'compressed / dense, CPU': '{:.2f}',
}
MEMORY = {
    'network': '{}',
    'image': '{}',
    'weights are': '{}',
    'weights MB': '{:.1f}',
    'peak MB': '{:.0f}',
    'first detection s': '{:.2f}',
    'of CPU': '{:.2f}',
}
Row = dict[str, Any]


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description='Time compression, loading and inference of detectors')
    parser.add_argument('configs', nargs='*', metavar='CONFIG', help='a config file, or mmdet::FOLDER/NAME.py')
    parser.add_argument('--checkpoints', nargs='+', metavar='FILE', help='of the configs (default: random weights)')
    parser.add_argument('--representation', choices=representation_names(), default='lattice')
    parser.add_argument('--bits', type=float, default=2.0, help='of the file for each weight (default: 2)')
    parser.add_argument('--include', nargs='+', default=['*'], metavar='PATTERN', help='weights to compress')
    parser.add_argument('--metric', choices=METRICS, default=METRICS[0])
    parser.add_argument('--threads', type=int, default=os.cpu_count(), help='of compression, decoding and inference')
    parser.add_argument('--shape', type=int, nargs=2, default=(800, 1333), metavar='N', help='of the image')
    parser.add_argument('--small', type=int, nargs=2, default=(416, 416), metavar='N', help='of a smaller image')
    parser.add_argument('--repeats', type=int, default=5, help='of each measurement; the table has the median')
    parser.add_argument('--out', help='NAME of NAME.md and NAME.csv')
    parser.add_argument('--ways', nargs='+', choices=WAYS, default=WAYS, help='how weights are held (default: all)')
    parser.add_argument('--held', action='store_true', help='leave out the seconds of loading in all its forms')
    parser.add_argument('--child', help=argparse.SUPPRESS)
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


def filled(model: nn.Module, riem: Path, names: Sequence[str], way: str) -> nn.Module:
    """The model with the weights of a file, held in one of :data:`WAYS`; the file compresses those of ``names``."""
    if way == 'compressed':
        state_dict: Mapping[str, Any] = load_compressed(model, reading.read(riem, parse=False))
    else:
        if way == 'live':
            make_live(model, representation='lattice', include=names)
        state_dict = load_from_riem(str(riem))['state_dict']
    load_into(model, state_dict, riem)
    model.eval()  # which gives nothing back where a detector has a teacher
    return model


@torch.no_grad()
def look(model: nn.Module, shape: tuple[int, int]) -> None:
    """Detections in an image of random pixels."""
    pixels = torch.randint(0, 256, (3, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    sample = DetDataSample(metainfo=dict(img_shape=shape, ori_shape=shape, scale_factor=(1.0, 1.0)))
    model.test_step({'inputs': [pixels], 'data_samples': [sample]})


def timed(work: Callable[[], Any]) -> tuple[float, float]:
    """Wall and CPU seconds."""
    before = clocks()
    work()
    after = clocks()
    return after[0] - before[0], after[1] - before[1]


def clocks() -> tuple[float, float]:
    """Wall and CPU seconds since some time ago."""
    return time.perf_counter(), time.process_time()


def inference(config: Config, riem: Path, names: Sequence[str], args: argparse.Namespace) -> tuple[Row, list[Row]]:
    """Seconds of an image in each way, all ways in turns: those of the first row, and of sizes and threads."""
    models = {way: filled(build_detector(config), riem, names, way) for way in args.ways}
    rows, first = [], None
    for shape in dict.fromkeys((tuple(args.shape), tuple(args.small))):
        for threads in sorted({1, args.threads}, reverse=True):
            torch.set_num_threads(threads)
            begun = {way: seconds(partial(look, model, shape), 1) for way, model in models.items()}
            first = first or begun.get('live')
            turns = [{way: timed(partial(look, models[way], shape)) for way in models} for _ in range(args.repeats)]
            rows.append(
                {
                    'image': f'{shape[0]}x{shape[1]}',
                    'threads': threads,
                    **{f'{way} s/image': statistics.median(turn[way][0] for turn in turns) for way in models},
                    **quotients(turns),
                }
            )
    torch.set_num_threads(args.threads)
    rows = [{**dict.fromkeys(IMAGES), **row} for row in rows]
    return {**{key: rows[0][key] for key in ('dense s/image', 'live s/image')}, 'live, first s': first}, rows


def quotients(turns: Sequence[Mapping[str, tuple[float, float]]]) -> Row:
    """Medians of the seconds with compressed weights over those with dense ones in the same turn."""
    if not {'dense', 'compressed'} <= set(turns[0]):
        return {}
    pairs = [(turn['compressed'], turn['dense']) for turn in turns]
    wall, cpu = (statistics.median(one[at] / other[at] for one, other in pairs) for at in (0, 1))
    return {'compressed / dense': wall, 'compressed / dense, CPU': cpu}


def memory(config: Path, riem: Path, names: Sequence[str], args: argparse.Namespace) -> list[Row]:
    """What each way takes in a process of its own, for each size of image (Linux alone)."""
    if not Path('/proc/self/status').exists():
        return []
    rows = []
    for shape in dict.fromkeys((tuple(args.shape), tuple(args.small))):
        for way in args.ways:
            job = json.dumps([str(config), str(riem), list(names), way, list(shape), args.threads])
            done = subprocess.run(
                [sys.executable, __file__, '--child', job], capture_output=True, text=True, check=False
            )
            if done.returncode:
                raise RiemError(f'{config.name} {way}: expected figures, found an error: {done.stderr.strip()[-500:]}')
            found = json.loads(done.stdout.splitlines()[-1])
            rows.append({'image': f'{shape[0]}x{shape[1]}', 'weights are': way, **found})
    return rows


def memory_here(name: str, riem: str, names: Sequence[str], way: str, shape: Sequence[int], threads: int) -> Row:
    """The figures of :func:`memory`, of this process."""
    torch.set_num_threads(threads)
    config = read_config(name)
    torch.nn.functional.conv2d(torch.zeros(1, 8, 32, 32), torch.zeros(8, 8, 3, 3))  # code that PyTorch loads once
    started = clocks()
    with BlankParameters():
        model = build_detector(config)
    built = clocks()
    release_memory()
    before = resident('VmRSS')
    if way == 'live':  # which makes states of the weights that there are
        for parameter in model.parameters():
            nn.init.zeros_(parameter)
    loading = clocks()
    model = filled(model, Path(riem), names, way)
    loaded = clocks()
    release_memory()
    held = resident('VmRSS') - before
    first = timed(lambda: look(model, (shape[0], shape[1])))
    wall, cpu = (built[at] - started[at] + loaded[at] - loading[at] + first[at] for at in (0, 1))
    look(model, (shape[0], shape[1]))
    return {
        'weights MB': held / 1e6,
        'peak MB': resident('VmHWM') / 1e6,
        'first detection s': wall,
        'of CPU': cpu,
    }


def resident(key: str) -> int:
    """Bytes that this process has in memory, ``VmRSS``, or had at most, ``VmHWM``."""
    for line in Path('/proc/self/status').read_text().splitlines():
        if line.startswith(key):
            return 1024 * int(line.split()[1])
    raise RiemError(f'/proc/self/status: expected {key}, found none; this needs Linux')


def measure(name: str, checkpoint: str | None, args: argparse.Namespace, folder: Path) -> tuple[Row, list[list[Row]]]:
    """The row of a detector; the rows of its stages, of its sizes of weights, of images and of memory."""
    config, short = read_config(name), Path(name).stem
    pth, outputs = folder / f'{short}.pth', Outputs.named(folder / f'{short}.riem', name, f'{short}.pth')
    write_fp32(config, checkpoint, pth)
    settings = Settings.of(representation=args.representation, bits=args.bits, include=tuple(args.include))
    report = compress_detector(name, str(pth), outputs, settings, metric=args.metric, threads=args.threads, force=True)
    totals = report['totals']
    weights = [weight for weight in report['weights'] if weight['seconds_of_stage']]
    names = [weight['name'] for weight in weights]
    looked, images = inference(config, outputs.riem, names, args)
    config.dump(folder / f'{short}.py')
    row = {
        **dict.fromkeys(SPEED_COLUMNS),
        'network': short,
        'weights': totals['weights'],
        'elements': totals['represented_elements'],
        'bytes': totals['bytes'],
        'encode s': totals['wall_seconds'],
        'encode us/element': 1e6 * totals['wall_seconds'] / max(1, totals['represented_elements']),
        **({} if args.held else loading(pth, outputs.riem, args.repeats)),
        **looked,
    }
    stages = [{'network': short, **totals['stages']}]
    parts = (images, memory(folder / f'{short}.py', outputs.riem, names, args))
    return row, [stages, sizes(short, weights), *([{**part, 'network': short} for part in rows] for rows in parts)]


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


def write(rows: Sequence[Row], tables: Sequence[Sequence[Row]], out: str) -> None:
    """All tables as Markdown, and that of the networks as CSV."""
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    stages, by_size, images, memories = tables
    parts = [
        markdown(rows, SPEED_COLUMNS),
        markdown(*shares(stages)),
        markdown(by_size, SIZES),
        markdown(images, IMAGES),
    ]
    parts += [markdown(memories, MEMORY)] if memories else []
    Path(f'{out}.md').write_text('\n'.join((*parts, command_and_machine())), encoding='utf-8')
    write_csv(rows, SPEED_COLUMNS, f'{out}.csv')


def main() -> None:
    """Measure one network after the other, and write the tables anew after each."""
    args = parse_args()
    if args.child:
        MMLogger.get_current_instance().setLevel('ERROR')
        print(json.dumps(memory_here(*json.loads(args.child))))
        return
    if not args.configs:
        raise RiemError('CONFIG: expected a config file, found none; give one, such as mmdet::FOLDER/NAME.py')
    checkpoints = args.checkpoints or [None] * len(args.configs)
    if len(checkpoints) != len(args.configs):
        raise RiemError(
            f'--checkpoints: expected one for each of {len(args.configs)} configs, found {len(checkpoints)}'
        )
    torch.set_num_threads(max(1, args.threads))
    MMLogger.get_current_instance().setLevel('WARNING')  # initialisers log every parameter
    rows: list[Row] = []
    tables: list[list[Row]] = [[], [], [], []]
    with tempfile.TemporaryDirectory() as folder:
        for name, checkpoint in zip(args.configs, checkpoints):
            print(f'{name}: compress, load, look', file=sys.stderr, flush=True)
            row, parts = measure(name, checkpoint, args, Path(folder))
            rows.append(row)
            for table, part in zip(tables, parts):
                table += part
            for part, columns in ([row], SPEED_COLUMNS), (parts[2], IMAGES), (parts[3], MEMORY):
                print(markdown(part, columns), flush=True)
            if args.out:
                write(rows, tables, args.out)


if __name__ == '__main__':
    run(main)
