"""How far the lattices of networks are from the least bits that any code could take at the same distortion.

    python tools/measure/gap.py CONFIG [--data-root DIR] [--networks A B] [--bits 2] [--out FILE.md]

The bound is that of Gaussian weights, see core/metric/bound.py: of one variance for the whole matrix, or of one for
each row. Bits are those of the payload and of the record of a weight.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.table import Table

from mmriem.benchmark.networks import Network, build_network
from mmriem.benchmark.runner import network_entries
from mmriem.core.budget.plan import RECORD_BITS
from mmriem.core.budget.scale import relative_steps, search
from mmriem.core.execution.tasks import Task, run_all
from mmriem.core.metric.bound import weight_bounds
from mmriem.core.metric.metric import MAX_COLUMNS
from mmriem.core.metric.pullback import collect
from mmriem.core.pipeline.settings import FitOptions
from mmriem.core.pipeline.solve_steps import problem_of
from mmriem.core.representations.base import Codec, StepProblem
from mmriem.core.weights.views import find_weights
from mmriem.engine.command_line import run
from mmriem.engine.config import STATED_ROOT, read_config
from mmriem.engine.terminal import plain_console
from mmriem.visualization import cells, command_and_machine, machine, markdown

COLUMNS = {
    'network': '{}',
    'weight': '{}',
    'rows': '{:,}',
    'columns': '{:,}',
    'metric': '{}',
    'bits/weight': '{:.3f}',
    'bound': '{:.3f}',
    'gap': '{:.3f}',
    'bound by rows': '{:.3f}',
    'gap by rows': '{:.3f}',
}
AVERAGE = 'average'
TEXT = ('network', 'weight', 'metric')


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description='Bits of lattices beside the least that any code could take')
    parser.add_argument('config', help='of a benchmark, with networks')
    parser.add_argument('--data-root', help=f'folder to use where configs say {STATED_ROOT}')
    parser.add_argument('--networks', nargs='+', help='names of the networks (default: all of the config)')
    parser.add_argument('--bits', type=float, default=2.0, help='of all payloads for each weight')
    parser.add_argument(
        '--skip-wider', type=int, default=MAX_COLUMNS, metavar='N', help='leave out matrices with more columns'
    )
    parser.add_argument('--threads', type=int, default=os.cpu_count(), help='weights fitted at a time')
    parser.add_argument('--out', help='a Markdown file for the table')
    return parser.parse_args()


def tell(line: str) -> None:
    """Print a line beside the figures."""
    print(line, file=sys.stderr, flush=True)


def rows_of(network: Network, bits: float, widest: int, threads: int) -> tuple[list[dict[str, Any]], list[str]]:
    """A row for each weight and one for the average weight; and the names of the weights that are left out.

    The scale is that of all weights, those that are left out among them.
    """
    model = network.original()
    state_dict = {key: tensor.detach() for key, tensor in model.state_dict().items()}
    views = find_weights(model)
    metrics = collect(model, views, network.probe(), threads=threads)
    matrices = {view.name: view.to_matrix(state_dict[view.name]) for view in views}
    problems = {
        view.name: problem_of(view, matrices[view.name], metrics.get(view.name), FitOptions()) for view in views
    }
    steps = relative_steps(problems, {name: name in metrics for name in problems})
    target = bits * sum(matrix.numel() for matrix in matrices.values())
    _, solutions = search(
        lambda scale: solved(problems, {name: scale * step for name, step in steps.items()}, threads),
        lambda found: float(sum(encoded.payload_bits() for encoded, _ in found.values())),
        target,
        start=2.0 ** (2 - bits),
    )

    def row(name: str) -> dict[str, Any]:
        metric, (encoded, distortion) = metrics.get(name), solutions[name]
        matrix = matrices[name]
        known = (None, None) if metric is None else (metric.blocks, metric.output_weights)
        bounds = weight_bounds(matrix, *known, distortion)
        return {
            'network': network.name,
            'weight': name,
            'rows': matrix.shape[0],
            'columns': matrix.shape[1],
            'metric': 'identity' if metric is None else metric.source,
            **per_weight(encoded.payload_bits() + RECORD_BITS, *bounds, matrix.numel()),
        }

    kept = [view for view in views if view.matrix_shape[1] <= widest]
    tasks = [Task(view.name, view.matrix_shape[1] ** 3, lambda _, name=view.name: row(name)) for view in kept]
    rows = run_all(tasks, threads)
    return rows + list(average(network.name, rows)), [view.name for view in views if view not in kept]


def solved(
    problems: Mapping[str, StepProblem], steps: Mapping[str, float], threads: int
) -> dict[str, tuple[Codec, float]]:
    """Every weight at its step, payloads made, and its distortion."""

    def solve(name: str) -> tuple[Codec, float]:
        encoded, distortion = problems[name].solve(steps[name])
        encoded.to_payload()
        return encoded, distortion

    tasks = [Task(name, 1.0, lambda _, name=name: solve(name)) for name in problems]
    return dict(zip(problems, run_all(tasks, threads)))


def per_weight(bits: float, matrix: float, rows: float, numel: int) -> dict[str, float]:
    """Bits, bounds and gaps of one weight out of so many."""
    return {
        'bits/weight': bits / numel,
        'bound': matrix / numel,
        'gap': (bits - matrix) / numel,
        'bound by rows': rows / numel,
        'gap by rows': (bits - rows) / numel,
    }


def average(network: str, rows: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The row of the average weight, where there is any."""
    numels = [row['rows'] * row['columns'] for row in rows]
    if rows:
        sums = [
            sum(row[key] * numel for row, numel in zip(rows, numels))
            for key in ('bits/weight', 'bound', 'bound by rows')
        ]
        shape = {'rows': None, 'columns': None, 'metric': None}
        yield {'network': network, 'weight': AVERAGE, **shape, **per_weight(*sums, sum(numels))}


def show(rows: list[dict[str, Any]]) -> None:
    """Print the table of a network."""
    columns = {key: form for key, form in COLUMNS.items() if key != 'network'}
    table = Table(title=f'{rows[0]["network"]} ({machine()})', title_justify='left')
    for key in columns:
        table.add_column(key, justify='left' if key in TEXT else 'right', overflow='fold')
    for row in rows:
        table.add_row(*cells(row, columns))
    plain_console(120).print(table)


def main() -> None:
    """Print the table of each network, and write that of all anew after each."""
    args = parse_args()
    config = read_config(args.config).to_dict()
    rows, notes = [], []
    for entry in network_entries(config, args.networks, args.data_root):
        network = build_network({key: value for key, value in entry.items() if key != 'settings'})
        tell(f'{network.name}: metric, lattices and bounds')
        found, left_out = rows_of(network, args.bits, args.skip_wider, args.threads)
        rows += found
        if found:
            show(found)
        for name in left_out:
            notes.append(f'- left out: {network.name}, {name}: more than {args.skip_wider} columns\n')
            tell(notes[-1][2:].strip())
        if args.out:
            parts = [markdown(rows, COLUMNS), *([''.join(notes)] if notes else []), command_and_machine()]
            Path(args.out).parent.mkdir(parents=True, exist_ok=True)
            Path(args.out).write_text('\n'.join(parts), encoding='utf-8')


if __name__ == '__main__':
    run(main)
