"""Out of `.riem` files again: checkpoints as MMEngine writes them, for programs that know nothing of mmriem."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from .core.atomic import remove_leftovers, whole_file
from .core.errors import RiemError
from .core.file import reading

__all__ = ['convert_back', 'halved', 'with_tuples', 'write_checkpoint', 'written_whole']


def convert_back(
    source: str | os.PathLike, target: str | os.PathLike, *, half: bool = False, force: bool = False
) -> str:
    """Write the stock checkpoint of a `.riem` file; returns a line that tells of it.

    Args:
        source: the `.riem` file.
        target: the `.pth` file.
        half: floating point values in fp16.
        force: replace an existing file.

    Raises:
        RiemError: the source cannot be read, the target exists and `force` is not given, or a value does not fit fp16.
    """
    archive = reading.read(source)
    state_dict = archive.decode()
    if half:
        state_dict = halved(state_dict)
    size = write_checkpoint(target, state_dict, with_tuples(archive.dataset_meta), force=force)
    return f'{target}: {size:,} bytes, {len(state_dict)} tensors'


def halved(state_dict: Mapping[str, Tensor]) -> OrderedDict[str, Tensor]:
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


def write_checkpoint(
    target: str | os.PathLike,
    state_dict: Mapping[str, Tensor],
    dataset_meta: Mapping[str, Any],
    *,
    force: bool = False,
) -> int:
    """Write a `.pth` file as MMEngine does, of the weights alone, whole or not at all; bytes on disk.

    Raises:
        RiemError: `target` exists and `force` is not given.
    """
    plain = OrderedDict((name, tensor.detach()) for name, tensor in state_dict.items())  # without records of states
    with written_whole(target, force) as fresh:
        torch.save({'meta': {'dataset_meta': dict(dataset_meta)}, 'state_dict': plain}, fresh)
    return Path(target).stat().st_size


def with_tuples(dataset_meta: Mapping[str, Any]) -> dict[str, Any]:
    """JSON made lists of what mmdet's visualiser expects as tuples: the classes, and each colour."""
    meta = dict(dataset_meta)
    if isinstance(meta.get('classes'), list):
        meta['classes'] = tuple(meta['classes'])
    if isinstance(meta.get('palette'), list):
        meta['palette'] = [tuple(c) if isinstance(c, list) else c for c in meta['palette']]
    return meta


@contextmanager
def written_whole(target: str | os.PathLike, force: bool) -> Iterator[BinaryIO]:
    """A stream of bytes that take the place of `target` at the end.

    Raises:
        RiemError: `target` exists and `force` is not given, or it cannot be written.
    """
    target = Path(target)
    if target.exists() and not force:
        raise RiemError(f'{target}: exists already; choose another name or pass --force')
    target.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(target.parent)
    with whole_file(target) as stream:
        yield stream
