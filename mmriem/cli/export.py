"""`mmriem export`: a `.riem` file as programs without mmriem read it, a stock checkpoint or an ONNX model.

The checkpoint has the stock keys. The ONNX model is backbone, neck and head of a single-stage detector; see
docs/deploy.md.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from mmriem.core.errors import RiemError
from mmriem.engine.config import read_config
from mmriem.engine.detector import init_detector
from mmriem.engine.export import write_onnx
from mmriem.engine.onnx_weights import FORMS
from mmriem.stock import convert_back

EPILOG = """\
examples:
  mmriem export out/ckpt.riem --to dense.pth --half
  mmriem export out/ckpt.riem --to model.onnx --config out/ckpt.py --size 640 640
  mmriem export out/ckpt.riem --to small.onnx --config out/ckpt.py --size 640 640 --weights int8
"""


def parser(prog: str | None = None) -> argparse.ArgumentParser:
    """What the command line may hold."""
    found = argparse.ArgumentParser(
        prog,
        description='Turn a .riem file into a stock checkpoint or an ONNX model.',
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    found.add_argument('file', help='a .riem file')
    found.add_argument('--to', required=True, type=Path, metavar='FILE', help='what to write, .pth or .onnx')
    found.add_argument('--half', action='store_true', help='.pth: floating point values in fp16')
    found.add_argument('--config', help='.onnx: config of the detector, a file or mmdet::FOLDER/NAME.py')
    found.add_argument(
        '--size',
        type=int,
        nargs=2,
        default=(640, 640),
        metavar=('HEIGHT', 'WIDTH'),
        help='.onnx: of the input (default: 640 640)',
    )
    found.add_argument('--opset', type=int, default=18, help="version of ONNX's operators (default: 18)")
    found.add_argument(
        '--weights',
        choices=FORMS,
        default=FORMS[0],
        help='.onnx: how weights are stored (default: fp32); int8 has a scale for each output channel',
    )
    found.add_argument('--force', action='store_true', help='replace an existing file')
    return found


def export_checkpoint(args: argparse.Namespace) -> str:
    """Write the `.pth` file; what to say about it."""
    if args.weights != FORMS[0]:
        raise RiemError(
            f'--weights {args.weights}: expected with --to NAME.onnx, found {args.to}; fp16 is --half there'
        )
    return convert_back(args.file, args.to, half=args.half, force=args.force)


def export_onnx(args: argparse.Namespace) -> str:
    """Write the `.onnx` file; what to say about it."""
    if args.config is None:
        raise RiemError(f'{args.to}: expected --config, found none; name the config of the detector')
    config = read_config(args.config)
    model = init_detector(config, args.file)
    height, width = args.size
    names = write_onnx(model, args.to, (height, width), opset=args.opset, weights=args.weights, force=args.force)
    return f'{args.to}: {args.to.stat().st_size:,} bytes, input 1x3x{height}x{width}, outputs {" ".join(names)}'


def command(args: argparse.Namespace) -> None:
    """Write what the command line asks for."""
    if not args.file.endswith('.riem'):
        raise RiemError(f'{args.file}: expected a .riem file; a checkpoint is what this program makes')
    exports = {'.pth': export_checkpoint, '.onnx': export_onnx}
    if args.to.suffix not in exports:
        raise RiemError(f'--to {args.to}: expected a name that ends in {" or ".join(exports)}')
    print(exports[args.to.suffix](args))
