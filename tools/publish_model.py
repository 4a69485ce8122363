"""Make a small checkpoint to hand on: the weights alone, in half precision, with the class names.

    python tools/publish_model.py work_dirs/NAME/epoch_12.pth demo/NAME.pth

Optimizer, schedule and log history are left out, so nothing but tensors and strings has to be unpickled.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections import OrderedDict
from pathlib import Path

import torch
from torch import Tensor

from mmriem.core.errors import RiemError
from mmriem.engine.checkpoint import read_checkpoint
from mmriem.engine.command_line import run


def halved(state_dict: OrderedDict[str, Tensor]) -> OrderedDict[str, Tensor]:
    """The same tensors, those in floating point rounded to fp16; counts and indices stay as they are.

    Raises:
        RiemError: a value is not finite in fp16.
    """
    rounded = OrderedDict()
    for name, tensor in state_dict.items():
        rounded[name] = tensor.half() if tensor.is_floating_point() else tensor
        if not torch.isfinite(rounded[name]).all():
            raise RiemError(
                f'{name}: expected values below 65504 in size for fp16, found {tensor.abs().max().item():g}; '
                'hand on the checkpoint in fp32'
            )
    return rounded


def publish(source: str | os.PathLike, target: str | os.PathLike, *, force: bool = False) -> int:
    """Write the published form of checkpoint `source` to `target`, whole or not at all; bytes on disk.

    Raises:
        RiemError: `source` cannot be read, does not fit fp16, or `target` exists and `force` is not given.
    """
    target = Path(target)
    if target.exists() and not force:
        raise RiemError(f'{target}: exists already; choose another name or pass --force')
    checkpoint = read_checkpoint(source)
    content = {
        'meta': {'dataset_meta': checkpoint.dataset_meta},
        'state_dict': halved(checkpoint.state_dict),
    }
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f'.{target.name}.') as scratch:
        # the file's own name, because torch.save writes it into the archive
        fresh = Path(scratch) / target.name
        torch.save(content, fresh)
        os.replace(fresh, target)
    return target.stat().st_size


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
