"""`mmriem convert-back`: the stock checkpoint of a `.riem` file, by the core alone."""

from __future__ import annotations

import argparse
from pathlib import Path

from mmriem.core.errors import RiemError
from mmriem.stock import convert_back

EPILOG = """\
examples:
  mmriem convert-back out/ckpt.riem                    # to out/ckpt.pth
  mmriem convert-back out/ckpt.riem --to dense.pth --half
"""


def parser(prog: str | None = None) -> argparse.ArgumentParser:
    """What the command line may hold."""
    found = argparse.ArgumentParser(
        prog,
        description='Write the stock .pth checkpoint of a .riem file, which any PyTorch program loads.',
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    found.add_argument('file', type=Path, help='a .riem file')
    found.add_argument('--to', type=Path, metavar='FILE.pth', help='what to write (default: beside the file)')
    found.add_argument('--half', action='store_true', help='floating point values in fp16')
    found.add_argument('--force', action='store_true', help='replace an existing file')
    return found


def command(args: argparse.Namespace) -> None:
    """Write what the command line asks for."""
    target = args.to or args.file.with_suffix('.pth')
    if target.suffix != '.pth':
        raise RiemError(f'--to {target}: expected a name that ends in .pth')
    print(convert_back(args.file, target, half=args.half, force=args.force))
