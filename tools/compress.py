"""Compress a trained detector without data: CONFIG and CHECKPOINT to a .riem file, a config that loads it, a report.

python tools/compress.py CONFIG CHECKPOINT --ratio 0.19
python tools/test.py work_dirs/NAME/NAME.py work_dirs/NAME/NAME.riem
"""

from __future__ import annotations

import argparse
import os
import sys

import torch
from mmengine.config import DictAction

from mmriem.core import representation_names
from mmriem.core.compress import Settings
from mmriem.core.errors import RiemError
from mmriem.engine.command_line import run
from mmriem.engine.compression import Outputs, compress_detector, print_report
from mmriem.engine.progress import show_progress

DEFAULT_RATIO = 0.19


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description='Compress a trained detector without data',
        epilog='Writes NAME.riem, NAME.py (a config that loads it) and NAME.json (a report of every weight).',
    )
    parser.add_argument('config', help='a config file, or mmdet::FOLDER/NAME.py')
    parser.add_argument('checkpoint', help='a .pth file')
    parser.add_argument('--out', help='folder, or file NAME.riem (default: work_dirs/NAME-OF-CONFIG)')
    parser.add_argument('--representation', choices=representation_names(), default='sigmoid')
    budget = parser.add_mutually_exclusive_group()
    budget.add_argument('--ratio', type=float, help=f'size of the file to the fp32 weights (default: {DEFAULT_RATIO})')
    budget.add_argument('--bits', type=float, help='bits of the file for each compressed weight')
    parser.add_argument(
        '--include',
        nargs='+',
        default=['*'],
        metavar='PATTERN',
        help='weights to compress, e.g. "backbone.*"',
    )
    parser.add_argument('--exclude', nargs='+', default=[], metavar='PATTERN', help='weights to keep dense')
    parser.add_argument(
        '--state-bits', type=int, default=0, help='bits of a state (default: by the budget; the paper: 8)'
    )
    parser.add_argument('--shifts', type=int, default=6, help='relative vectors of sigmoid (default and paper: 6)')
    parser.add_argument('--seeds', type=int, default=1, help='random starts of each fit, the worse ones culled early')
    parser.add_argument('--seed', type=int, default=0, help='the first of them')
    parser.add_argument('--effort', type=float, default=1.0, help='factor on the optimisation steps (default: 1)')
    parser.add_argument('--device', default='cpu', help='where the fit runs (default: cpu)')
    parser.add_argument(
        '--threads', type=int, default=os.cpu_count(), help='weights fitted at a time (default: all cores)'
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        metavar='KEY=VALUE',
        help='override entries of the config: a.b=1 a.c="[x,y]", without white space in a value',
    )
    parser.add_argument('--force', action='store_true', help='replace existing outputs')
    parser.add_argument(
        '--trust-checkpoint',
        action='store_true',
        help='read the .pth file without protection: code in it is run',
    )
    return parser.parse_args()


def check_device(name: str) -> str:
    """The device, if it is there.

    Raises:
        RiemError: there is no such device.
    """
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().partition('\n')[0]
        raise RiemError(f'--device {name}: not available here ({reason}); use --device cpu') from error
    return name


def main() -> None:
    """Compress what the command line names."""
    args = parse_args()
    settings = Settings(
        representation=args.representation,
        ratio=DEFAULT_RATIO if args.ratio is None and args.bits is None else args.ratio,
        bits=args.bits,
        include=tuple(args.include),
        exclude=tuple(args.exclude),
        state_bits=args.state_bits,
        shifts=args.shifts,
        seeds=args.seeds,
        seed=args.seed,
        effort=args.effort,
    )
    device = check_device(args.device)
    outputs = Outputs.named(args.out, args.config, args.checkpoint)
    outputs.check(force=args.force)
    with show_progress('compressing') as on_progress:
        report = compress_detector(
            args.config,
            args.checkpoint,
            outputs,
            settings,
            options=args.cfg_options,
            device=device,
            threads=max(1, args.threads),
            trust=args.trust_checkpoint,
            force=args.force,
            on_progress=on_progress,
        )
    print_report(report, outputs)


if __name__ == '__main__':
    try:
        run(main)
    except KeyboardInterrupt:
        sys.exit('interrupted: nothing was written')
