"""`mmriem compress`: shrink a trained detector or classifier without data."""

from __future__ import annotations

import argparse
import os
import re
import sys

from mmengine.config import DictAction

from mmriem.api import unavailable
from mmriem.core import representation_names
from mmriem.core.errors import RiemError
from mmriem.core.pipeline.settings import Settings
from mmriem.engine.compression import METRICS, compress_detector, print_report
from mmriem.engine.judge import Checks
from mmriem.engine.ladder import BITS, compress_ladder, print_ladder
from mmriem.engine.outputs import Outputs
from mmriem.engine.processes import LAUNCHERS, joined
from mmriem.engine.progress import show_progress

UNITS = {'b': 1, 'kb': 10**3, 'mb': 10**6, 'gb': 10**9, 'kib': 2**10, 'mib': 2**20, 'gib': 2**30}
DESCRIPTION = """\
Compress a trained detector or classifier without data.

Writes NAME.riem, NAME.py (a config that loads it), and a report: NAME.html to look at, NAME.json for programs.
Without a size the file is as small as shows no loss."""
EPILOG = """\
examples:
  mmriem compress cfg.py ckpt.pth                      # to work_dirs/cfg/ckpt.riem
  mmriem compress mmdet::yolox/yolox_s_8xb8-300e_coco.py yolox_s.pth --out out/
  mmriem compress cfg.py ckpt.pth --size 2MB --out small.riem
  mmriem compress cfg.py ckpt.pth --bits 4 2 1 --out o # o/ckpt-4bit.riem and so on, and a table to choose by
  mmriem compress cfg.py ckpt.pth --eval               # mAP before and after, where the test set is there
  mmriem compress cfg.py ckpt.pth --resume             # after Ctrl-C, a kill or a power cut
  bash tools/dist_compress.sh cfg.py ckpt.pth 4        # by four processes, the same bytes
  mmriem test out/ckpt.py out/ckpt.riem                # its mAP
"""


def byte_count(text: str) -> int:
    """Bytes of a text such as ``5MB``, ``750 kB``, ``1.5MiB`` or ``123456``.

    >>> byte_count('5MB')
    5000000
    """
    found = re.fullmatch(r'\s*(\d+(?:\.\d*)?)\s*([a-zA-Z]*)\s*', text)
    count = float(found.group(1)) * UNITS.get((found.group(2) or 'b').lower(), 0) if found else 0
    if count < 1:
        raise argparse.ArgumentTypeError(f'expected a size such as 5MB or 750kB, found {text!r}')
    return int(count)


def parser(prog: str | None = None) -> argparse.ArgumentParser:
    """What the command line may hold."""
    found = argparse.ArgumentParser(
        prog, description=DESCRIPTION, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    found.add_argument('config', help='a config file, or mmdet::FOLDER/NAME.py')
    found.add_argument('checkpoint', help='a .pth file')
    found.add_argument('--out', help='folder, or file NAME.riem (default: work_dirs/NAME-OF-CONFIG)')
    _add_budget(found)
    _add_choice(found.add_argument_group('what is compressed, and in which representation'))
    _add_images(found.add_argument_group('images, by which errors are weighed'))
    _add_correction(found.add_argument_group('norms and biases'))
    _add_checks(found.add_argument_group('what is measured of the file'))
    _add_place(found.add_argument_group('where it runs'))
    _add_files(found.add_argument_group('files'))
    return found


def _add_budget(found: argparse.ArgumentParser) -> None:
    group = found.add_argument_group('size of the file: one of these, or none for no visible loss')
    budget = group.add_mutually_exclusive_group()
    budget.add_argument('--size', type=byte_count, metavar='5MB', help='bytes; kB, MB, KiB, MiB are known')
    budget.add_argument('--ratio', type=float, help='share of the fp32 weights')
    budget.add_argument(
        '--bits',
        type=float,
        nargs='+',
        help='bits for each compressed weight, everything counted; several make a ladder of files and one table',
    )
    budget.add_argument(
        '--ladder',
        dest='bits',
        action='store_const',
        const=list(BITS),
        help=f'the same as --bits {" ".join(f"{bits:g}" for bits in BITS)}',
    )
    budget.add_argument('--tolerance', type=float, help='instead: predicted relative error of the outputs')
    group.add_argument(
        '--allow-broken',
        action='store_true',
        help='write the file also where its predicted error says that it will find next to nothing',
    )


def _add_choice(group: argparse._ArgumentGroup) -> None:
    group.add_argument('--include', nargs='+', default=['*'], metavar='PATTERN', help='weights, e.g. "backbone.*"')
    group.add_argument('--exclude', nargs='+', default=[], metavar='PATTERN', help='weights to keep dense')
    group.add_argument(
        '--representation',
        choices=representation_names(),
        default='lattice',
        help="how weights are regenerated: from integers (lattice, the default), by the paper's sigmoids (sigmoid), or "
        'as a product of two thin matrices (bilinear)',
    )
    group.add_argument(
        '--no-trellis',
        dest='trellis',
        action='store_false',
        help='round the integers of lattice one by one: larger files, whose integers can be trained',
    )
    group.add_argument(
        '--state-bits', type=int, default=0, help='bits of a state (default: by the budget; the paper: 8)'
    )
    group.add_argument('--shifts', type=int, default=6, help='relative vectors of sigmoid (default and paper: 6)')
    group.add_argument('--dmu', type=int, default=0, help='inner dimension of its metric (default: to match Dq)')
    group.add_argument('--seeds', type=int, default=1, help='random starts of each fit, the worse ones culled early')
    group.add_argument('--seed', type=int, default=0, help='the first of them')
    group.add_argument('--effort', type=float, default=1.0, help='factor on the optimisation steps (default: 1)')


def _add_images(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        '--metric',
        choices=METRICS,
        default=METRICS[0],
        help='where an error of a weight counts: where the outputs on images depend on it (default); the same with '
        'the outputs of a detector weighted by their scores, which takes images with objects: --images (task); or '
        'alike (identity)',
    )
    group.add_argument(
        '--images',
        metavar='DIR',
        help='use the images of this folder instead of procedural ones: on a network '
        'that was trained hard 64 unlabelled ones are worth a whole bit a weight against procedural ones, and none '
        'against synthetic ones',
    )
    group.add_argument('--image-count', type=int, default=0, help='number of images (default: by their size)')
    group.add_argument(
        '--synthesis',
        type=synthesis_steps,
        default=None,
        metavar='STEPS',
        help='steps that procedural images are optimised by, until the norms of the network see what they saw in '
        'training: worth a whole bit a weight on a network that was trained hard, still without data; 0: none, '
        'which is quicker; auto: 40, fewer where these would take more than about 10 minutes on two cores, none '
        'where norms hold no statistics (default: auto)',
    )


def synthesis_steps(text: str) -> int | None:
    """A number of steps; None for `auto`.

    >>> synthesis_steps('40'), synthesis_steps('auto')
    (40, None)
    """
    if text == 'auto':
        return None
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f'expected a number of steps or auto, found {text!r}') from None


def _add_correction(group: argparse._ArgumentGroup) -> None:
    group.add_argument('--no-recalibration', action='store_true', help='leave them as they are in the checkpoint')
    group.add_argument(
        '--tune',
        type=int,
        metavar='STEPS',
        help='train them so many steps on images against the original network (default: 300 if no size is given '
        'and images are small, else 0)',
    )


def _add_checks(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        '--agree',
        action='store_true',
        help='what it finds against what the original finds, on procedural images; see mmriem agree',
    )
    group.add_argument('--agree-images', metavar='DIR', help='the same on the images of this folder')
    group.add_argument('--eval', action='store_true', help="the metrics of the config's test set, before and after")


def _add_place(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        '--device',
        default='cpu',
        help='where the fit runs (default: cpu); with a launcher, cuda is a GPU for each process',
    )
    group.add_argument(
        '--threads', type=int, help='weights fitted at a time in each process (default: all cores, shared out)'
    )
    group.add_argument(
        '--launcher', choices=LAUNCHERS, default='none', help='what started the processes that share the work'
    )
    group.add_argument('--local_rank', '--local-rank', type=int, default=0, help='set by launchers')
    group.add_argument('--no-progress', action='store_true', help='do not show how far the work is')


def _add_files(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        '--resume',
        action='store_true',
        help='go on where an interrupted compression of the same settings was, if there is one',
    )
    group.add_argument('--force', action='store_true', help='replace existing outputs; without --resume, start over')
    group.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        metavar='KEY=VALUE',
        help='override entries of the config: a.b=1 a.c="[x,y]", without white space in a value',
    )
    group.add_argument(
        '--trust-checkpoint',
        action='store_true',
        help='read the .pth file without protection: code in it is run',
    )
    group.add_argument(
        '--prefix',
        default='',
        help='take the weights whose names begin with it, e.g. teacher. of a semi-supervised training',
    )


def check_device(name: str) -> str:
    """The device, if it is there.

    Raises:
        RiemError: there is no such device.
    """
    if reason := unavailable(name):
        raise RiemError(f'--device {name}: not available here ({reason}); use --device cpu')
    return name


def settings_of(args: argparse.Namespace) -> Settings:
    """How to compress, by the command line."""
    return Settings.of(
        representation=args.representation,
        ratio=args.ratio,
        bits=args.bits[0] if args.bits and len(args.bits) == 1 else None,
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


def checks_of(args: argparse.Namespace) -> Checks:
    """What is measured of the file, by the command line.

    Raises:
        RiemError: an evaluation of a part of a checkpoint.
    """
    if args.eval and args.prefix:
        raise RiemError('--eval: expected a whole checkpoint, found --prefix; evaluate with mmriem test')
    return Checks(args.agree or args.agree_images is not None, args.agree_images, args.eval)


def command(args: argparse.Namespace) -> None:
    """Compress what the command line names; Ctrl-C ends it with a line that says how to go on."""
    try:
        _compress(args)
    except KeyboardInterrupt:
        sys.exit('interrupted: nothing was written; what is finished is kept, go on with --resume')


def _compress(args: argparse.Namespace) -> None:
    settings = settings_of(args)
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    device = check_device(args.device)
    outputs = Outputs.named(args.out, args.config, args.checkpoint)
    is_ladder = args.bits is not None and len(args.bits) > 1
    if is_ladder and args.launcher != 'none':
        raise RiemError(f'--bits: expected one number with --launcher {args.launcher}, found {len(args.bits)}')
    with joined(args.launcher) as workers:
        if workers.size > 1 and device == 'cuda':
            device = check_device(f'cuda:{os.environ["LOCAL_RANK"]}')
        with show_progress('compressing', quiet=args.no_progress or workers.rank > 0) as display:
            options = dict(
                options=args.cfg_options,
                metric=args.metric,
                images=args.images,
                image_count=args.image_count,
                synthesis=args.synthesis,
                device=device,
                threads=max(1, args.threads or (os.cpu_count() or 1) // int(os.environ.get('LOCAL_WORLD_SIZE', 1))),
                trust=args.trust_checkpoint,
                prefix=args.prefix,
                force=args.force,
                resume=args.resume,
                allow_broken=args.allow_broken,
                checks=checks_of(args),
                on_progress=display,
                on_layer=display.layer,
            )
            place = args.config, args.checkpoint, outputs, settings
            if is_ladder:
                rows, report = compress_ladder(*place, args.bits, **options), None
            else:
                rows, report = None, compress_detector(*place, workers=workers, **options)
    if rows is not None:
        print_ladder(rows)
    if report is not None:
        print_report(report, outputs)
