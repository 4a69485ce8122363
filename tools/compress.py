"""Compress a trained detector or classifier without data: a .riem file, a config that loads it, a report.

python tools/compress.py CONFIG CHECKPOINT
python tools/compress.py CONFIG CHECKPOINT --size 2MB
python tools/compress.py CONFIG CHECKPOINT --resume
bash tools/dist_compress.sh CONFIG CHECKPOINT 4
python tools/test.py work_dirs/NAME/NAME.py work_dirs/NAME/NAME.riem
"""

from __future__ import annotations

import argparse
import os
import re
import sys

import torch
from mmengine.config import DictAction

from mmriem.core import representation_names
from mmriem.core.errors import RiemError
from mmriem.core.pipeline.settings import Settings
from mmriem.engine.command_line import run
from mmriem.engine.compression import METRICS, Outputs, compress_detector, print_report
from mmriem.engine.processes import LAUNCHERS, joined
from mmriem.engine.progress import show_progress

UNITS = {'b': 1, 'kb': 10**3, 'mb': 10**6, 'gb': 10**9, 'kib': 2**10, 'mib': 2**20, 'gib': 2**30}


def byte_count(text: str) -> int:
    """Bytes of a text such as ``5MB``, ``750 kB``, ``1.5MiB`` or ``123456``.

    >>> byte_count('5MB')
    5000000
    """
    found = re.fullmatch(r'\s*(\d+(?:\.\d*)?)\s*([a-zA-Z]*)\s*', text)
    unit = UNITS.get((found.group(2) or 'b').lower()) if found else None
    if unit is None or float(found.group(1)) * unit < 1:
        raise argparse.ArgumentTypeError(f'expected a size such as 5MB or 750kB, found {text!r}')
    return int(float(found.group(1)) * unit)


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description='Compress a trained detector without data',
        epilog='Writes NAME.riem, NAME.py (a config that loads it), and a report: NAME.html and NAME.json.',
    )
    parser.add_argument('config', help='a config file, or mmdet::FOLDER/NAME.py')
    parser.add_argument('checkpoint', help='a .pth file')
    parser.add_argument('--out', help='folder, or file NAME.riem (default: work_dirs/NAME-OF-CONFIG)')
    parser.add_argument('--representation', choices=representation_names(), default='lattice')
    budget = parser.add_mutually_exclusive_group()
    budget.add_argument('--ratio', type=float, help='size of the file to the fp32 weights')
    budget.add_argument('--bits', type=float, help='bits of the file for each compressed weight')
    budget.add_argument('--size', type=byte_count, metavar='5MB', help='bytes of the file; kB, MB, KiB, MiB are known')
    budget.add_argument(
        '--tolerance',
        type=float,
        help='predicted relative error of the outputs (without any of these four: no visible loss, see README)',
    )
    parser.add_argument(
        '--metric',
        choices=METRICS,
        default=METRICS[0],
        help='where an error of a weight counts: where the outputs on images depend on it (default), or alike',
    )
    parser.add_argument('--images', metavar='DIR', help='use the images of this folder instead of procedural ones')
    parser.add_argument('--image-count', type=int, default=0, help='number of images (default: by their size)')
    parser.add_argument(
        '--no-recalibration', action='store_true', help='leave norms and biases as they are in the checkpoint'
    )
    parser.add_argument(
        '--no-trellis',
        dest='trellis',
        action='store_false',
        help='round the integers of lattice one by one: larger files, whose integers can be trained',
    )
    parser.add_argument(
        '--tune',
        type=int,
        metavar='STEPS',
        help='then train them so many steps on images against the original network (default: 300 if no budget is given '
        'and images are small, else 0)',
    )
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
    parser.add_argument('--dmu', type=int, default=0, help='inner dimension of its metric (default: to match Dq)')
    parser.add_argument('--seeds', type=int, default=1, help='random starts of each fit, the worse ones culled early')
    parser.add_argument('--seed', type=int, default=0, help='the first of them')
    parser.add_argument('--effort', type=float, default=1.0, help='factor on the optimisation steps (default: 1)')
    parser.add_argument(
        '--device',
        default='cpu',
        help='where the fit runs (default: cpu); with a launcher, cuda is a GPU for each process',
    )
    parser.add_argument(
        '--threads', type=int, help='weights fitted at a time in each process (default: all cores, shared out)'
    )
    parser.add_argument(
        '--launcher', choices=LAUNCHERS, default='none', help='what started the processes that share the work'
    )
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help='set by launchers')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        metavar='KEY=VALUE',
        help='override entries of the config: a.b=1 a.c="[x,y]", without white space in a value',
    )
    parser.add_argument(
        '--resume',
        action='store_true',
        help='go on where an interrupted compression of the same settings was, if there is one',
    )
    parser.add_argument('--force', action='store_true', help='replace existing outputs; without --resume, start over')
    parser.add_argument('--no-progress', action='store_true', help='do not show how far the work is')
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
    settings = Settings.of(
        representation=args.representation,
        ratio=args.ratio,
        bits=args.bits,
        size=args.size,
        tolerance=args.tolerance,
        include=tuple(args.include),
        exclude=tuple(args.exclude),
        state_bits=args.state_bits,
        shifts=args.shifts,
        dmu=args.dmu,
        seeds=args.seeds,
        seed=args.seed,
        effort=args.effort,
        recalibration=not args.no_recalibration,
        trellis=args.trellis,
        tuning=args.tune,
    )
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    device = check_device(args.device)
    outputs = Outputs.named(args.out, args.config, args.checkpoint)
    with joined(args.launcher) as workers:
        if workers.size > 1 and device == 'cuda':
            device = check_device(f'cuda:{os.environ["LOCAL_RANK"]}')
        with show_progress('compressing', quiet=args.no_progress or workers.rank > 0) as display:
            report = compress_detector(
                args.config,
                args.checkpoint,
                outputs,
                settings,
                options=args.cfg_options,
                metric=args.metric,
                images=args.images,
                image_count=args.image_count,
                device=device,
                threads=max(1, args.threads or os.cpu_count() // int(os.environ.get('LOCAL_WORLD_SIZE', 1))),
                trust=args.trust_checkpoint,
                force=args.force,
                resume=args.resume,
                on_progress=display,
                on_layer=display.layer,
                workers=workers,
            )
    if report is not None:
        print_report(report, outputs)


if __name__ == '__main__':
    try:
        run(main)
    except KeyboardInterrupt:
        sys.exit('interrupted: nothing was written; what is finished is kept, go on with --resume')
