"""All methods of a config on all its networks, side by side; writes table.csv, table.md and picture.png.

    python tools/measure/benchmark.py CONFIG [--data-root DIR] [--networks A B] [--methods M N] [--reuse]

Tables and picture are written anew after each finished network. Networks or methods that are run again go into an
earlier table with `--keep docs/benchmarks/table.csv`.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from mmriem.benchmark.methods import get_method
from mmriem.benchmark.runner import Benchmark, chosen, network_entries
from mmriem.benchmark.table import COLUMNS, joined, read_rows, write_results
from mmriem.engine.command_line import run
from mmriem.engine.config import STATED_ROOT, read_config
from mmriem.visualization import cells

CELLS = Path('work_dirs/benchmark')


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description='Compress networks with every method and evaluate before and after')
    parser.add_argument('config', help='networks, and methods with their settings')
    parser.add_argument('--data-root', help=f'folder to use where configs say {STATED_ROOT}')
    parser.add_argument('--networks', nargs='+', help='names of the networks (default: all of the config)')
    parser.add_argument('--methods', nargs='+', help='names of the methods (default: all of the config)')
    parser.add_argument('--threads', type=int, default=os.cpu_count(), help='threads of each encoding and decoding')
    parser.add_argument('--reuse', action='store_true', help=f'use finished cells of {CELLS}')
    parser.add_argument(
        '--keep', metavar='TABLE.csv', help='an earlier table, whose rows of networks and methods that do not run stay'
    )
    parser.add_argument('--out', default='docs/benchmarks', help='folder for tables and picture')
    return parser.parse_args()


def tell(line: str) -> None:
    """Print a line beside the figures."""
    print(line, file=sys.stderr, flush=True)


def methods_of(config: dict, args: argparse.Namespace) -> list[dict]:
    """Entries of the methods that are asked for and installed; a line for each that is not."""
    entries = chosen(config['methods'], args.methods, 'method')
    for entry in entries:
        method = get_method(entry['type'])
        if not method.is_installed():
            tell(f'{entry["name"]}: skipped, the module {method.requires} is not installed; {method.install}')
    return [entry for entry in entries if get_method(entry['type']).is_installed()]


def main() -> None:
    """Run what the command line names."""
    args = parse_args()
    config = read_config(args.config).to_dict()
    networks, methods = network_entries(config, args.networks, args.data_root), methods_of(config, args)
    known = chosen(config['methods'], None, 'method')
    own = [entry['name'] for entry in known if not get_method(entry['type']).is_peer]
    rows, left_out = [], []
    kept = read_rows(args.keep) if args.keep else []

    def leave_out(line: str) -> None:
        left_out.append(line)
        tell(line)

    benchmark = Benchmark(methods, args.threads, CELLS, args.reuse, leave_out)
    tell('  '.join(COLUMNS))
    for network in networks:
        for row in benchmark.rows(network):
            rows.append(row)
            tell('  '.join(cells(row, COLUMNS)))
        write_results(joined(kept, rows), args.out, own, left_out)
    print(Path(args.out, 'table.md').read_text(encoding='utf-8'))


if __name__ == '__main__':
    try:
        run(main)
    except KeyboardInterrupt:
        sys.exit('interrupted: finished cells stay; run again with --reuse to go on')
