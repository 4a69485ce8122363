"""Draw the pictures of docs/how_it_works.md from a checkpoint and its file; that page has both commands."""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse

from mmriem.core.file.archive import Archive, WeightRecord
from mmriem.core.file.reading import read
from mmriem.core.images.procedural import procedural_images
from mmriem.engine.checkpoint import read_checkpoint
from mmriem.engine.command_line import run

BLUE, ORANGE, GREEN, GREY = '#0072b2', '#d55e00', '#009e73', '#999999'
SHOWN = 24
"""Rows and columns of a weight matrix that are drawn."""
METRIC = np.array([[1.0, 0.86], [0.86, 1.0]])
"""Of two inputs that are mostly alike: errors of their weights that have opposite signs cancel out."""
WEIGHT = np.array([0.36, 0.45])
"""Two weights, in steps."""
IMAGES, SIDE = 6, 160


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('checkpoint', help='the original, a .pth file')
    parser.add_argument('file', help='a .riem file of lattices that was made of it')
    parser.add_argument('--weight', default='backbone.layer4.0.conv1.weight', help='the weight matrix to draw')
    parser.add_argument('--out', type=Path, default=Path('docs/how_it_works'), metavar='DIR')
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    archive = read(args.file)
    record = next(record for record in archive.weights if record.view.name == args.weight)
    original = read_checkpoint(args.checkpoint).state_dict[args.weight]
    draw_states(record, record.view.to_matrix(original), args.out / 'states.png')
    draw_metric(args.out / 'metric.png')
    draw_images(args.out / 'images.png')
    draw_integers(record, args.out / 'integers.png')
    draw_file(archive, Path(args.file).stat().st_size, args.out / 'file.png')


def new_figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), layout='constrained')
    FigureCanvasAgg(figure)
    return figure


def save(figure: Figure, path: Path) -> None:
    figure.savefig(path, dpi=110, metadata={'Software': None})
    print(path)


def draw_states(record: WeightRecord, original: torch.Tensor, path: Path) -> None:
    """A corner of a weight, its integers with the steps at their sides, and what these regenerate."""
    encoded = record.encoded
    rows, columns = encoded.steps()
    corner = np.s_[:SHOWN, :SHOWN]
    figure = new_figure(11, 4.0)
    grid = figure.add_gridspec(2, 4, width_ratios=(20, 20, 1.4, 20), height_ratios=(1.4, 20), wspace=0.02, hspace=0.02)
    limit = float(original[corner].abs().max())
    weights = {'cmap': 'RdBu', 'vmin': -limit, 'vmax': limit, 'interpolation': 'nearest', 'aspect': 'auto'}
    most = max(1, int(np.abs(encoded.codes[corner]).max()))
    panels = (
        (0, 'weights', original[corner], weights),
        (1, 'integers $z_{ij}$', encoded.codes[corner], {**weights, 'vmin': -most, 'vmax': most}),
        (3, r'regenerated: $s_i \cdot t_j \cdot z_{ij}$', encoded.decode()[corner], weights),
    )
    for place, title, values, style in panels:
        axes = figure.add_subplot(grid[1, place])
        axes.imshow(np.asarray(values), **style)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.set_xlabel(title, fontsize=11)
        if place == 0:
            axes.set_ylabel('output neurons')
            axes.set_title('input neurons', fontsize=10)
    sides = {'cmap': 'Greens', 'vmin': 0, 'interpolation': 'nearest', 'aspect': 'auto'}
    for place, title, steps in (
        ((0, 1), 'step $t_j$ of each column', columns[None, :SHOWN]),
        ((1, 2), 'step $s_i$ of each row', rows[:SHOWN, None]),
    ):
        axes = figure.add_subplot(grid[place])
        axes.imshow(steps, **{**sides, 'vmax': steps.max() * 1.2})
        axes.set_xticks([])
        axes.set_yticks([])
        if place == (0, 1):
            axes.set_title(title, fontsize=10)
        else:
            axes.yaxis.set_label_position('right')
            axes.set_ylabel(title, fontsize=10)
    save(figure, path)


def draw_metric(path: Path) -> None:
    """Two weights, the integers around them, and which are nearest by distance and by the error of the output."""
    points = np.array([(x, y) for x in range(-1, 3) for y in range(-1, 3)], dtype=float)
    errors = points - WEIGHT
    by_distance = points[np.argmin((errors**2).sum(1))]
    by_output = points[np.argmin(np.einsum('ni,ij,nj->n', errors, METRIC, errors))]
    assert not np.array_equal(by_distance, by_output), 'expected two integers, found one; choose another WEIGHT'
    values, axes_of = np.linalg.eigh(METRIC)
    angle = np.degrees(np.arctan2(*axes_of[::-1, 0]))
    error = by_output - WEIGHT
    level = float(error @ METRIC @ error)
    figure = new_figure(8.4, 3.9)
    axes = figure.add_subplot()
    for share in (1.0, 4.0):
        width, height = 2 * np.sqrt(share * level / values)
        axes.add_patch(Ellipse(WEIGHT, width, height, angle=angle, fill=False, color=GREEN, linewidth=1.2))
    axes.plot(*points.T, 'o', color=GREY, markersize=5)
    axes.plot(*WEIGHT, 'x', color='black', markersize=9, markeredgewidth=2, label='the two weights')
    for point, colour, told in (
        (by_distance, ORANGE, 'nearest by distance'),
        (by_output, BLUE, 'nearest by the output: what is taken'),
    ):
        worth = float((point - WEIGHT) @ METRIC @ (point - WEIGHT))
        axes.plot(*point, 'o', color=colour, markersize=11, label=f'{told}, error {worth:.2f}')
    axes.plot([], [], color=GREEN, label='equal errors of the output')
    axes.set_aspect('equal')
    axes.set_xlim(-1.4, 2.4)
    axes.set_ylim(-1.4, 2.4)
    axes.set_xticks(range(-1, 3))
    axes.set_yticks(range(-1, 3))
    axes.set_xlabel('first weight, in steps')
    axes.set_ylabel('second weight, in steps')
    axes.spines[['top', 'right']].set_visible(False)
    figure.legend(loc='outside right center', frameon=False, fontsize=9)
    save(figure, path)


def draw_images(path: Path) -> None:
    """Procedural images as they are drawn, before a style is sought."""
    images = procedural_images(IMAGES, SIDE, SIDE).permute(0, 2, 3, 1).numpy()
    figure = new_figure(11, 2.0)
    for axes, image in zip(figure.subplots(1, IMAGES), images):
        axes.imshow(image)
        axes.set_axis_off()
    save(figure, path)


def draw_integers(record: WeightRecord, path: Path) -> None:
    """How often each integer of a weight occurs, and what the average one takes."""
    counts = Counter(record.encoded.codes.ravel().tolist())
    total = record.encoded.codes.size
    most = max(abs(value) for value in counts)
    values = range(-most, most + 1)
    figure = new_figure(6.6, 3.0)
    axes = figure.add_subplot()
    axes.bar(values, [100 * counts[value] / total for value in values], color=BLUE, width=0.85)
    axes.set_yscale('log')
    axes.yaxis.set_major_formatter('{x:g} %')
    axes.set_xlabel(f'integers of {record.view.name}')
    axes.set_ylabel('share of the weights')
    bits = record.encoded.payload_bits() / total
    axes.set_title(f'{total:,} weights, {bits:.2f} bits each on average', fontsize=10)
    axes.spines[['top', 'right']].set_visible(False)
    save(figure, path)


def draw_file(archive: Archive, size: int, path: Path) -> None:
    """Where the bytes of a file are."""
    parts: Counter[str] = Counter()
    for record in archive.weights:
        parts[record.view.name.partition('.')[0]] += record.encoded.payload_bits() // 8
    vectors = len(archive.vector_bytes())
    parts['norms and biases'] = vectors
    parts['records and hashes'] = size - sum(parts.values())
    elements = sum(int(np.prod(record.view.shape)) for record in archive.weights)
    figure = new_figure(8.2, 2.4)
    axes = figure.add_subplot()
    names = list(parts)[::-1]
    bars = axes.barh(names, [parts[name] / 1e3 for name in names], color=[GREY, GREY] + [BLUE] * (len(names) - 2))
    axes.bar_label(bars, [f' {parts[name] / 1e3:,.1f} kB' for name in names], fontsize=9)
    axes.set_xlabel('kB')
    axes.set_title(f'{size:,} bytes for {elements:,} weights ({4 * elements / 1e6:.1f} MB in fp32)', fontsize=10)
    axes.spines[['top', 'right']].set_visible(False)
    axes.margins(x=0.12)
    save(figure, path)


if __name__ == '__main__':
    run(main)
