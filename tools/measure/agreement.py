"""How agreement with the original and true loss of accuracy go together: a table, a plot and rank correlations.

    python tools/measure/agreement.py configs/benchmark/real.py --data-root DIR --out docs/agreement
        --networks retinanet_r18_bccd yolox_nano_coco --images retinanet_r18_bccd=DIR/bccd/images ...

Each network is compressed to several bits for each weight; of each file the accuracy on the test set is measured, and
its agreement with the original on procedural images and on real ones without their labels. Real images of a detector
are those of the folder that its test set does not name, where there are such; of a classifier they are test images.
Networks that rows.json has already are not measured again.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from mmriem.benchmark.names import NAMES
from mmriem.benchmark.networks import Classifier, Detector, Network, build_network
from mmriem.benchmark.runner import network_entries
from mmriem.classification import normalised, read_images
from mmriem.core.errors import RiemError
from mmriem.core.file.manifest import Source
from mmriem.core.images.probe import ImageProbe, Probe
from mmriem.core.pipeline.ladder import climb
from mmriem.core.pipeline.settings import Budget, Settings
from mmriem.engine.agreement import SCORE, Reference
from mmriem.engine.command_line import run
from mmriem.engine.config import STATED_ROOT, read_config
from mmriem.engine.probe import SUFFIXES, build_probe
from mmriem.visualization import command_and_machine, markdown
from mmriem.visualization.curves import COLOURS, MARKERS

COLUMNS = {
    'network': '{}',
    'bits/weight': '{:g}',
    'predicted error': '{:.3f}',
    'accuracy': '{:.1f}',
    'lost': '{:.1f}',
    'kept': '{:.3f}',
    'real AP': '{:.1f}',
    'real AP50': '{:.1f}',
    'real quality': '{:.1f}',
    'procedural AP': '{:.1f}',
    'procedural AP50': '{:.1f}',
    'procedural quality': '{:.1f}',
}
"""`kept` is the share of the original's accuracy; a classifier's agreement (same class) stands in the columns of AP."""
MEASURES = ('real AP', 'real AP50', 'real quality', 'procedural AP', 'procedural AP50', 'procedural quality')
BITS = (0.4, 0.7, 1.0, 1.5, 2.0, 3.0, 4.0)
SEED = 1
"""Of procedural images: others than those that the compression uses."""


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('config', help='of a benchmark, with networks')
    parser.add_argument('--data-root', help=f'folder to use where configs say {STATED_ROOT}')
    parser.add_argument('--networks', nargs='+', help='names of the networks (default: all of the config)')
    parser.add_argument('--images', nargs='+', default=[], metavar='NETWORK=DIR', help='real images of a detector')
    parser.add_argument('--image-count', type=int, default=32, help='images of each kind (default: 32)')
    parser.add_argument('--bits', nargs='+', type=float, default=BITS, help='for each weight')
    parser.add_argument('--score', type=float, default=SCORE, help='least score of what the original finds')
    parser.add_argument('--threads', type=int, default=os.cpu_count(), help='weights fitted at a time')
    parser.add_argument('--out', type=Path, required=True, metavar='DIR', help='for rows.json, table.md and plot.png')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    folders = dict(entry.split('=', 1) for entry in args.images)
    args.out.mkdir(parents=True, exist_ok=True)
    kept = args.out / 'rows.json'
    rows = json.loads(kept.read_text()) if kept.is_file() else []
    for entry in network_entries(read_config(args.config), args.networks, args.data_root):
        if any(row['network'] == entry['name'] for row in rows):
            continue  # of an earlier run
        network = build_network({key: value for key, value in entry.items() if key != 'settings'})
        with real_images(network, folders.get(network.name), args.image_count) as real:
            for row in measured(network, real, args):
                rows.append(row)
                kept.write_text(json.dumps(rows, indent=1) + '\n')
    write(args.out, rows)
    print((args.out / 'table.md').read_text())


def measured(network: Network, real: Any, args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """A row for each size."""
    started = time.perf_counter()
    original, probe = network.original().eval(), network.probe()
    before = network.accuracy(original.state_dict())
    references = {
        'procedural': Reference(original, procedural(network, original, args.image_count), args.score),
        'real': Reference(original, real(original), args.score),
    }
    budgets = [Budget(bits=bits) for bits in sorted(args.bits, reverse=True)]
    source = Source(network.name, '0' * 64)
    options = dict(probe=probe, threads=args.threads, dataset_meta={}, source=source)
    for rung in climb(original, Settings.of(tuning=0), budgets, **options):
        if rung.compressed is None:
            print(f'{network.name}, {rung.budget.bits:g} bits: {rung.refused}', file=sys.stderr)
            continue
        state_dict = rung.compressed.archive.decode()
        compressed = copy.deepcopy(original)
        compressed.load_state_dict(state_dict)
        after = network.accuracy(state_dict)
        row = {
            'network': network.name,
            'bits/weight': rung.budget.bits,
            'predicted error': rung.compressed.report['totals']['predicted_error'],
            'accuracy': after,
            'lost': before - after,
            'kept': after / before,
        }
        for kind, reference in references.items():
            row.update(columns(kind, reference.agree(compressed).figures))
        print(f'{row}  {time.perf_counter() - started:.0f} s', file=sys.stderr, flush=True)
        yield row


def columns(kind: str, figures: Mapping[str, Any]) -> dict[str, float | None]:
    """Percent of each measure on images of that kind."""
    if figures['kind'] == 'classes':
        return {f'{kind} AP': 100 * figures['top1'], f'{kind} AP50': None, f'{kind} quality': None}
    percent = lambda share: None if share is None else 100 * share  # noqa: E731
    quality = sum(figures['quality']) / len(figures['quality'])
    return {
        f'{kind} AP': percent(figures['AP']),
        f'{kind} AP50': percent(figures['AP50']),
        f'{kind} quality': percent(quality),
    }


def procedural(network: Network, original: torch.nn.Module, count: int) -> Probe:
    """Procedural images, in the style that suits the network."""
    if isinstance(network, Detector):
        return build_probe(network.parsed_config(), original, count, SEED)
    return network.probe().others(1)


@contextmanager
def real_images(network: Network, folder: str | None, count: int) -> Iterator[Any]:
    """Within: what makes a probe of real images for the original."""
    if isinstance(network, Classifier):
        yield lambda model: classifier_images(network, 8 * count)
        return
    if folder is None:
        raise RiemError(f'{network.name}: expected its real images, found none; give --images {network.name}=DIR')
    config = network.parsed_config()
    named = {image['file_name'] for image in json.loads(Path(config.test_evaluator.ann_file).read_text())['images']}
    files = sorted(path for path in Path(folder).rglob('*') if path.suffix.lower() in SUFFIXES)
    others = [path for path in files if path.name not in named] or files
    with TemporaryDirectory() as links:
        for path in others[:: max(1, len(others) // count)][:count]:
            (Path(links) / path.name).symlink_to(path.resolve())
        yield lambda model: build_probe(config, model, count, folder=links)


def classifier_images(network: Classifier, count: int) -> Probe:
    """Images of the test set."""
    images = read_images(network.images).images
    chosen = torch.randperm(len(images), generator=torch.manual_seed(SEED))[:count]
    return ImageProbe(normalised(images[chosen]))


def write(out: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """The table with its correlations, and the plot."""
    text = markdown(rows, COLUMNS) + '\nRank correlation (Spearman) with the share of the accuracy that is kept:\n\n'
    text += markdown(correlations(rows), {'network': '{}', 'files': '{}', **dict.fromkeys(MEASURES, '{:.2f}')})
    (out / 'table.md').write_text(f'{text}\n{command_and_machine()}', encoding='utf-8')
    draw(rows, out / 'plot.png')


def correlations(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Of each network, and of all detectors and of all networks together."""
    groups = {
        name: [row for row in rows if row['network'] == name] for name in dict.fromkeys(r['network'] for r in rows)
    }
    detectors = [row for row in rows if row['real AP50'] is not None]
    groups.update({'all detectors': detectors, 'all networks': list(rows)})
    return [
        {'network': name, 'files': len(its), **{key: rank_correlation(its, key) for key in MEASURES}}
        for name, its in groups.items()
    ]


def rank_correlation(rows: Sequence[Mapping[str, Any]], key: str) -> float | None:
    """Spearman's, ties sharing their ranks; None where a row has no figure or all are the same."""
    if any(row[key] is None for row in rows) or len({row[key] for row in rows}) < 2:
        return None
    return float(np.corrcoef(ranks([row['kept'] for row in rows]), ranks([row[key] for row in rows]))[0, 1])


def ranks(values: Sequence[float]) -> np.ndarray:
    """Of each value, from 0; equal ones have the mean of theirs.

    >>> ranks([0.5, 0.1, 0.5]).tolist()
    [1.5, 0.0, 1.5]
    """
    _, which, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts + 1) / 2)[which]


def draw(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Share of the accuracy that is kept over agreement, a panel for each kind of images."""
    figure = Figure(figsize=(10, 4.4), layout='constrained')
    FigureCanvasAgg(figure)
    names = list(dict.fromkeys(row['network'] for row in rows))
    for axes, kind in zip(figure.subplots(1, 2, sharey=True), ('real', 'procedural')):
        for number, name in enumerate(names):
            points = [(row[f'{kind} AP'], 100 * row['kept']) for row in rows if row['network'] == name]
            points = sorted(point for point in points if point[0] is not None)
            if not points:
                continue
            style = {'marker': MARKERS[number], 'color': COLOURS[number], 'linewidth': 1, 'markersize': 5}
            axes.plot(*zip(*points), label=NAMES.get(name, name), **style)
        axes.set_xlabel('AP against the original (classifiers: same class), %')
        axes.set_title(f'{kind} images')
        axes.grid(alpha=0.3)
        axes.spines[['top', 'right']].set_visible(False)
    figure.axes[0].set_ylabel('accuracy that is kept, % of the original')
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc='outside lower center', ncols=3, frameon=False, fontsize=9)
    figure.savefig(path, dpi=110, metadata={'Software': None})


if __name__ == '__main__':
    run(main)
