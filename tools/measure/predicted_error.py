"""What a predicted error means: networks compressed to several ones, and their accuracy then.

    python tools/measure/predicted_error.py CONFIG [--data-root DIR] [--networks A B] [--errors 0.1 0.5]

CONFIG is that of a benchmark. Norms and biases are recalibrated, not trained.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmriem.benchmark.networks import build_network
from mmriem.benchmark.runner import network_entries
from mmriem.core.file.manifest import Source
from mmriem.core.pipeline.compress import compress
from mmriem.core.pipeline.settings import Settings
from mmriem.engine.command_line import run
from mmriem.engine.config import STATED_ROOT, read_config
from mmriem.visualization import command_and_machine, markdown

COLUMNS = {
    'network': '{}',
    'predicted error': '{:.3f}',
    'bytes': '{:,}',
    'bits/weight': '{:.2f}',
    'accuracy': '{:.1f}',
    'lost': '{:.1f}',
}
ERRORS = (0.05, 0.1, 0.2, 0.4, 0.7, 1.0, 1.5, 2.0)


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('config', help='of a benchmark, with networks')
    parser.add_argument('--data-root', help=f'folder to use where configs say {STATED_ROOT}')
    parser.add_argument('--networks', nargs='+', help='names of the networks (default: all of the config)')
    parser.add_argument('--errors', nargs='+', type=float, default=ERRORS, help='predicted errors to compress to')
    parser.add_argument('--threads', type=int, default=os.cpu_count(), help='weights fitted at a time')
    parser.add_argument('--out', type=Path, metavar='FILE.md', help='also write the table here')
    return parser.parse_args()


def measured(entry: dict[str, Any], errors: list[float], threads: int) -> Iterator[dict[str, Any]]:
    """A row for each error."""
    network = build_network({key: value for key, value in entry.items() if key != 'settings'})
    original, probe = network.original(), network.probe()
    before = network.accuracy(original.state_dict())
    for error in errors:
        compressed = compress(
            original,
            Settings.of(tolerance=error, tuning=0),
            dataset_meta={},
            source=Source(network.name, '0' * 64),
            probe=probe,
            threads=threads,
        )
        totals, after = compressed.report['totals'], network.accuracy(compressed.archive.decode())
        yield {
            'network': network.name,
            'predicted error': totals['predicted_error'],
            'bytes': totals['bytes'],
            'bits/weight': totals['bits_per_weight'],
            'accuracy': after,
            'lost': before - after,
        }


def main() -> None:
    args = parse_args()
    rows: list[dict[str, Any]] = []
    for entry in network_entries(read_config(args.config), args.networks, args.data_root):
        started = time.perf_counter()
        for row in measured(entry, args.errors, args.threads):
            rows.append(row)
            print(f'{row}  {time.perf_counter() - started:.0f} s', file=sys.stderr, flush=True)
            if args.out is not None:
                args.out.parent.mkdir(parents=True, exist_ok=True)
                args.out.write_text(f'{markdown(rows, COLUMNS)}\n{command_and_machine()}', encoding='utf-8')
    print(markdown(rows, COLUMNS))


if __name__ == '__main__':
    run(main)
