"""A `.riem` file of another network is refused wherever MMEngine loads it, not only told of in a warning.

MMEngine loads every checkpoint with `strict=False` and offers no hook between reading and loading: a file of another
network gives a model with random weights, and a list of keys on the terminal. What is known there is which tensors come
from a `.riem` file, since its scheme marks them. So the two places that every door passes look for that mark:
`mmengine.runner.checkpoint.load_state_dict` (`load_checkpoint`, Runner, inferencers, `Pretrained`), and how a
`BaseModule` takes a state dict (backbones of mmdet that read their `Pretrained` themselves). Without the mark, and
where a program has mixed tensors of several sources itself, both do what MMEngine wrote.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import mmengine.runner.checkpoint as mmengine_checkpoint
from mmengine.model import BaseModule
from torch import Tensor, nn

from mmriem.core.errors import RiemError

from .checkpoint import load_into

__all__ = ['mark', 'origin', 'refuse_misfits']

_ORIGIN = 'riem_origin'
_is_checking: ContextVar[bool] = ContextVar('is_checking', default=False)


def mark(tensor: Tensor, path: str) -> Tensor:
    """Remember on a tensor, and on what `copy.deepcopy` makes of it, which `.riem` file it comes from."""
    setattr(tensor, _ORIGIN, path)
    return tensor


def origin(state_dict: Mapping[str, Any]) -> str | None:
    """The `.riem` file that all tensors of a state dict come from; None where there is no such file."""
    origins = {getattr(tensor, _ORIGIN, None) for tensor in state_dict.values()}
    return origins.pop() if len(origins) == 1 else None


def refuse_misfits() -> None:
    """From now on `.riem` files that do not fit are refused. A second call does nothing.

    State dicts of other files load as before.
    """
    if not hasattr(mmengine_checkpoint.load_state_dict, '__wrapped__'):
        mmengine_checkpoint.load_state_dict = _checked_load(mmengine_checkpoint.load_state_dict)
        BaseModule._load_from_state_dict = _checked_take(BaseModule._load_from_state_dict)


def _checked_load(load):
    @functools.wraps(load)
    def load_state_dict(module, state_dict, *args, **kwargs):
        with _checked(module, state_dict) as is_loaded:
            return None if is_loaded else load(module, state_dict, *args, **kwargs)

    return load_state_dict


def _checked_take(take):
    @functools.wraps(take)
    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs):
        if prefix:  # a child of what is being loaded
            return take(self, state_dict, prefix, *args, **kwargs)
        with _checked(self, state_dict):
            return take(self, state_dict, prefix, *args, **kwargs)

    return _load_from_state_dict


@contextmanager
def _checked(module: nn.Module, state_dict: Mapping[str, Any]) -> Iterator[bool]:
    """Whether the module has taken the state dict already, since that is of a `.riem` file.

    Raises:
        RiemError: it does not fit.
    """
    path = None if _is_checking.get() else origin(state_dict)
    if path is None:
        yield False
        return
    token = _is_checking.set(True)
    try:
        try:
            load_into(module, state_dict, path)
        except RiemError as error:
            remedy = 'for a part of it, or another head, load the .pth that mmriem convert-back makes'
            raise RiemError(f'{error}; {remedy}') from error
        yield True
    finally:
        _is_checking.reset(token)
