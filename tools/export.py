"""Turn a .riem file into what programs without mmriem read: a stock checkpoint, or an ONNX model.

    python tools/export.py NAME.riem --to dense.pth [--half]
    python tools/export.py NAME.riem --to model.onnx --config NAME.py [--size 640 640]

The checkpoint has the stock keys. The ONNX model is backbone, neck and head of a single-stage detector; see
docs/deploy.md.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from mmriem.core.errors import RiemError
from mmriem.engine.command_line import run
from mmriem.engine.config import read_config
from mmriem.engine.detector import init_detector
from mmriem.engine.export import halved, write_checkpoint, write_onnx
from mmriem.engine.scheme import load_from_riem


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('file', help='a .riem file')
    parser.add_argument('--to', required=True, type=Path, metavar='FILE', help='what to write, .pth or .onnx')
    parser.add_argument('--half', action='store_true', help='.pth: floating point values in fp16')
    parser.add_argument('--config', help='.onnx: config of the detector, a file or mmdet::FOLDER/NAME.py')
    parser.add_argument(
        '--size',
        type=int,
        nargs=2,
        default=(640, 640),
        metavar=('HEIGHT', 'WIDTH'),
        help='.onnx: of the input (default: 640 640)',
    )
    parser.add_argument('--opset', type=int, default=18, help="version of ONNX's operators (default: 18)")
    parser.add_argument('--force', action='store_true', help='replace an existing file')
    return parser.parse_args()


def export_checkpoint(args: argparse.Namespace) -> str:
    """Write the `.pth` file; what to say about it."""
    loaded = load_from_riem(args.file)
    state_dict = halved(loaded['state_dict']) if args.half else loaded['state_dict']
    size = write_checkpoint(args.to, state_dict, loaded['meta']['dataset_meta'], force=args.force)
    return f'{args.to}: {size:,} bytes, {len(state_dict)} tensors'


def export_onnx(args: argparse.Namespace) -> str:
    """Write the `.onnx` file; what to say about it."""
    if args.config is None:
        raise RiemError(f'{args.to}: expected --config, found none; name the config of the detector')
    config = read_config(args.config)
    model = init_detector(config, args.file)
    height, width = args.size
    names = write_onnx(model, args.to, (height, width), opset=args.opset, force=args.force)
    return f'{args.to}: {args.to.stat().st_size:,} bytes, input 1x3x{height}x{width}, outputs {" ".join(names)}'


def main() -> None:
    args = parse_args()
    if not args.file.endswith('.riem'):
        raise RiemError(f'{args.file}: expected a .riem file; a checkpoint is what this program makes')
    exports = {'.pth': export_checkpoint, '.onnx': export_onnx}
    if args.to.suffix not in exports:
        raise RiemError(f'--to {args.to}: expected a name that ends in {" or ".join(exports)}')
    print(exports[args.to.suffix](args))


if __name__ == '__main__':
    run(main)
