"""SHA-256 of the file that each network of a benchmark is compressed to, to compare before and after a change.

    python tools/maintain/fingerprints.py configs/benchmark/real.py [--data-root DATA] [--networks N ...] [--bits 2]

Two lines of the same text say that the files are the same byte for byte. Compare on one machine: which bits an encoder
finds depends on the processor (docs/scale.md).
"""

from __future__ import annotations

import argparse
import hashlib
import os

import torch

from mmriem.benchmark.methods import compressed
from mmriem.benchmark.networks import build_network
from mmriem.benchmark.runner import network_entries
from mmriem.core import representation_names
from mmriem.core.pipeline.settings import Settings
from mmriem.engine.config import STATED_ROOT, read_config
from mmriem.program import run


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='of a benchmark, with networks')
    parser.add_argument('--data-root', help=f'folder to use where configs say {STATED_ROOT}')
    parser.add_argument('--networks', nargs='+', help='names of the networks (default: all of the config)')
    parser.add_argument('--bits', type=float, default=2.0, help='bits of the file for each weight')
    parser.add_argument('--representation', choices=representation_names(), default='lattice')
    parser.add_argument('--tune', type=int, default=0, help='steps of training norms and biases')
    parser.add_argument('--threads', type=int, default=os.cpu_count(), help='pieces of work at a time')
    return parser.parse_args()


def main() -> None:
    """Print a line for each network."""
    args = parse_args()
    torch.set_num_threads(args.threads)
    settings = Settings.of(representation=args.representation, bits=args.bits, tuning=args.tune, effort=0.2)
    for entry in network_entries(read_config(args.config).to_dict(), args.networks, args.data_root):
        network = build_network({key: value for key, value in entry.items() if key != 'settings'})
        data = compressed(network.original(), settings, network.probe(0)).archive.to_bytes()
        print(f'{hashlib.sha256(data).hexdigest()}  {network.name}, {len(data):,} bytes', flush=True)


if __name__ == '__main__':
    run(main)
