"""What one constant of the code, or one setting, does to accuracy at equal bytes: a row for each value.

    python tools/measure/constants.py CONFIG --networks N ... --bits B ... --constant MODULE.NAME --values V ...
    python tools/measure/constants.py CONFIG --networks N ... --bits B ... --setting NAME --values V ...

Values are Python literals. Everything else is as the code has it, all rows are of one run, and single files scatter by
some tenths of a point: compare the means over the rates.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import os
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from mmriem.benchmark.methods import compressed
from mmriem.benchmark.networks import Network, build_network
from mmriem.benchmark.runner import network_entries
from mmriem.cli.compress import synthesis_steps
from mmriem.core.errors import RiemError
from mmriem.core.images.probe import Probe
from mmriem.core.pipeline.settings import Settings
from mmriem.engine.config import read_config
from mmriem.program import run
from mmriem.visualization import command_and_machine, markdown

COLUMNS = {
    'network': '{}',
    'value': '{}',
    'bits': '{}',
    'mean': '{:.2f}',
    'accuracies': '{}',
    'kB': '{}',
    'predicted error': '{}',
    's': '{:.0f}',
}


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='a config of networks, such as configs/benchmark/real.py')
    parser.add_argument('--networks', nargs='+', required=True, help='names of the networks')
    parser.add_argument('--data-root', help='folder of the data, in place of that of the config')
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument('--constant', help='dotted name of a constant of a module')
    what.add_argument('--setting', choices=Settings.names(), help='name of a setting')
    parser.add_argument('--values', nargs='+', type=ast.literal_eval, required=True, help='what it is to be')
    parser.add_argument('--bits', nargs='+', type=float, required=True, help='bits of the file per weight')
    parser.add_argument('--tune', type=int, default=0, help='steps of training norms and biases (default: 0)')
    parser.add_argument('--synthesis', type=synthesis_steps, help='steps that images are optimised by (default: auto)')
    parser.add_argument('--threads', type=int, default=os.cpu_count(), help='threads of each compression')
    return parser.parse_args()


@contextmanager
def changed(constant: str | None, value: Any) -> Iterator[None]:
    """Within, the constant of a module has that value.

    Raises:
        RiemError: there is no such constant.
    """
    if constant is None:
        yield
        return
    module_name, _, name = constant.rpartition('.')
    try:
        module = importlib.import_module(module_name)
        before = getattr(module, name)
    except (ImportError, AttributeError, ValueError) as error:
        raise RiemError(f'--constant {constant}: expected MODULE.NAME of a constant, found none ({error})') from error
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before)


def row_of(network: Network, probe: Probe, value: Any, args: argparse.Namespace) -> dict[str, Any]:
    """One value at every rate."""
    started, made = time.perf_counter(), []
    options = {} if args.setting is None else {args.setting: value}
    for bits in args.bits:
        settings = Settings.of(**{'bits': bits, 'tuning': args.tune, **options})
        with changed(args.constant, value):
            result = compressed(network.original(), settings, probe)
        made.append((network.accuracy(result.archive.decode()), result.report['totals']))
    accuracies = [accuracy for accuracy, _ in made]
    return {
        'network': network.name,
        'value': value,
        'bits': ' '.join(f'{bits:g}' for bits in args.bits),
        'mean': statistics.mean(accuracies),
        'accuracies': ' '.join(f'{accuracy:.1f}' for accuracy in accuracies),
        'kB': ' '.join(f'{totals["bytes"] / 1e3:.1f}' for _, totals in made),
        'predicted error': ' '.join(f'{totals["predicted_error"]:.3f}' for _, totals in made),
        's': time.perf_counter() - started,
    }


def main() -> None:
    """Measure what the command line names."""
    args = parse_args()
    torch.set_num_threads(args.threads)
    rows = []
    for entry in network_entries(read_config(args.config).to_dict(), args.networks, args.data_root):
        network = build_network({key: value for key, value in entry.items() if key != 'settings'})
        probe = network.probe(args.synthesis)
        for value in args.values:
            rows.append(row_of(network, probe, value, args))
            print({name: rows[-1][name] for name in ('network', 'value', 'accuracies')}, file=sys.stderr, flush=True)
    print(f'{command_and_machine()}\n\n{markdown(rows, COLUMNS)}')


if __name__ == '__main__':
    run(main)
