"""FLOPs, BOPs and bytes of each weight of a compressed network, and of the whole.

    python tools/complexity.py CONFIG x.riem [--shape H W] [--out report.json]

A .pth file is counted as a dense network.
"""

from __future__ import annotations

import argparse
import json

from mmengine.config import DictAction

from mmriem.core.atomic import write_whole
from mmriem.core.errors import RiemError
from mmriem.engine.command_line import run
from mmriem.engine.complexity import image_shape, measure_complexity, print_complexity
from mmriem.engine.config import read_config


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description='Count the operations of a compressed network beside its bytes')
    parser.add_argument('config', help='a config file, or mmdet::FOLDER/NAME.py')
    parser.add_argument('checkpoint', help='a .riem or .pth file')
    parser.add_argument(
        '--shape',
        type=int,
        nargs='+',
        metavar='N',
        help='height and width (default: of the test pipeline)',
    )
    parser.add_argument('--activation-bits', type=int, default=32, help='for BOPs (default: 32)')
    parser.add_argument('--out', metavar='FILE.json', help='also write the report here')
    parser.add_argument(
        '--cfg-options', nargs='+', action=DictAction, metavar='KEY=VALUE', help='override entries of the config'
    )
    parser.add_argument(
        '--trust-checkpoint', action='store_true', help='read the .pth file without protection: code in it is run'
    )
    return parser.parse_args()


def main() -> None:
    """Count what the command line names."""
    args = parse_args()
    config = read_config(args.config, args.cfg_options)
    shape = tuple(args.shape * 2 if len(args.shape) == 1 else args.shape) if args.shape else image_shape(config)
    if len(shape) != 2 or min(shape) < 1:
        raise RiemError(f'--shape: expected a height and a width above 0, found {" ".join(map(str, args.shape))}')
    if not 1 <= args.activation_bits <= 64:
        raise RiemError(f'--activation-bits: expected 1 to 64, found {args.activation_bits}')
    report = measure_complexity(
        config, args.checkpoint, shape, activation_bits=args.activation_bits, trust=args.trust_checkpoint
    )
    if args.out:
        write_whole(args.out, json.dumps(report, indent=1) + '\n')
    print_complexity(report)


if __name__ == '__main__':
    run(main)
