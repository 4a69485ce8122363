"""Make a small checkpoint to hand on: the weights alone, in half precision, with the class names.

    python tools/maintain/publish_model.py work_dirs/NAME/epoch_12.pth demo/NAME.pth

Optimizer, schedule and log history are left out, so nothing but tensors and strings has to be unpickled.
"""

from __future__ import annotations

import argparse
import os

from mmriem.engine.checkpoint import read_checkpoint
from mmriem.engine.command_line import run
from mmriem.stock import halved, write_checkpoint


def publish(source: str | os.PathLike, target: str | os.PathLike, *, force: bool = False) -> int:
    """Write the published form of checkpoint `source` to `target`, whole or not at all; bytes on disk.

    Raises:
        RiemError: `source` cannot be read, does not fit fp16, or `target` exists and `force` is not given.
    """
    checkpoint = read_checkpoint(source)
    return write_checkpoint(target, halved(checkpoint.state_dict), checkpoint.dataset_meta, force=force)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('source', help="checkpoint of tools/train.py, or any other of a detector's weights")
    parser.add_argument('target', help='file to write')
    parser.add_argument('--force', action='store_true', help='replace an existing file')
    args = parser.parse_args()
    size = publish(args.source, args.target, force=args.force)
    print(f'{args.target}: {size:,} bytes')


if __name__ == '__main__':
    run(main)
