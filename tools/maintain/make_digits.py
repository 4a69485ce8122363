"""Make the embedded demo set: handwritten digits on cluttered backgrounds, in COCO format.

    python tools/maintain/make_digits.py [DIR]

The default folder is data/demo_digits, where the configs in configs/demo look for it.
"""

from __future__ import annotations

import argparse
import sys

from rich.progress import Progress

from mmriem.core.errors import RiemError
from mmriem.datasets import write_digits


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('root', nargs='?', default='data/demo_digits', help='folder to make (%(default)s)')
    parser.add_argument('--seed', type=int, default=0, help='seed of the generator (%(default)s)')
    parser.add_argument('--train', type=int, default=2000, help='training images (%(default)s)')
    parser.add_argument('--val', type=int, default=200, help='validation images (%(default)s)')
    parser.add_argument('--force', action='store_true', help='replace a digits set of other settings')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    with Progress(transient=True) as bar:
        task = bar.add_task('images', total=args.train + args.val)
        written = write_digits(
            args.root,
            seed=args.seed,
            train=args.train,
            val=args.val,
            force=args.force,
            progress=lambda done, _: bar.update(task, completed=done),
        )
    state = 'written' if written else 'already there'
    print(f'{args.root}: {args.train} training and {args.val} validation images, {state}')


if __name__ == '__main__':
    try:
        main()
    except RiemError as failure:
        sys.exit(f'error: {failure}')
