"""Gradients of networks that switch them off: under ``no_grad`` or ``inference_mode``, or by changes in place.

Whether a network tells gradients is no matter of how much its outputs depend on a weight. A frozen backbone runs under
``no_grad`` because it is not trained, and code that predicts changes tensors in place because nobody differentiates it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd.grad_mode import inference_mode
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

_TO_NUMPY = (Tensor.numpy, Tensor.__array__)
_lock = threading.Lock()
_keeping = threading.local()
_users = 0
_ENTER, _EXIT = inference_mode.__enter__, inference_mode.__exit__


class TolerantGradients(TorchFunctionMode):
    """Within, autograd follows what it refuses otherwise.

    Gradients go on where the network asks for none; the parts of a split tensor are views that may be changed; another
    change in place that is refused is made without it; a tensor of ``inference_mode`` is taken as an ordinary one, and
    what NumPy asks for is given. Where a gradient needs values that were changed, ``backward`` is an error as always.
    """

    def __torch_function__(
        self, function: Callable, types: Any, args: tuple = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if function is torch._C._set_grad_enabled:
            return None
        if function in _TO_NUMPY:
            return function(args[0].detach(), *args[1:], **kwargs)
        if function is Tensor.__iter__ and args[0].dim():
            return iter(_alone(args[0].unbind(), args[0]))
        args, kwargs = tree_map(_ordinary, (args, kwargs))
        try:
            given = function(*args, **kwargs)
        except RuntimeError:
            if not _is_in_place(function):
                raise
            with torch.no_grad():
                return function(*args, **kwargs)
        return _alone(given, args[0]) if type(given) in (tuple, list) and args else given


def _alone(parts: Sequence[Any], source: Any) -> Sequence[Any]:
    """The parts of a tensor, each as the one output of its function: autograd lets only such views be changed."""
    if not isinstance(source, Tensor) or not all(isinstance(part, Tensor) and part._is_view() for part in parts):
        return parts
    if any(part.untyped_storage().data_ptr() != source.untyped_storage().data_ptr() for part in parts):
        return parts
    kind: Any = type(parts)
    return kind(source.as_strided(part.shape, part.stride(), part.storage_offset()) for part in parts)


def _ordinary(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) and value.is_inference() else value


def _is_in_place(function: Callable) -> bool:
    """Whether a function changes its first argument: ``add_``, ``__iadd__``, ``__setitem__``."""
    name = getattr(function, '__name__', '')
    is_operator = name.startswith('__') and (name.startswith('__i') or name == '__setitem__')
    return is_operator or (name.endswith('_') and not name.endswith('__'))


@contextmanager
def tolerant_gradients() -> Iterator[None]:
    """Within, this thread computes gradients as :class:`TolerantGradients` says, under ``inference_mode`` too."""
    with torch.enable_grad(), _without_inference_mode(), TolerantGradients():
        yield


CHANGED = 'modified by an inplace operation'
"""What torch says where a gradient needs values that are no longer there, see `saved_copies`."""


@contextmanager
def saved_copies() -> Iterator[None]:
    """Within, this thread keeps copies of what gradients need, so that networks may change the tensors themselves."""
    _keeping.copies = True
    try:
        with torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor.detach().clone(), lambda tensor: tensor):
            yield
    finally:
        _keeping.copies = False


def keeps_copies() -> bool:
    """Whether this thread is within `saved_copies`."""
    return getattr(_keeping, 'copies', False)


@contextmanager
def _without_inference_mode() -> Iterator[None]:
    """Within, ``inference_mode`` does nothing in this thread; it has no hook, so its class is told."""
    global _users
    with _lock:
        _users += 1
        _set_hooks(_enter, _exit)
    _keeping.here = True
    try:
        yield
    finally:
        _keeping.here = False
        with _lock:
            _users -= 1
            if not _users:
                _set_hooks(_ENTER, _EXIT)


def _set_hooks(enter: Any, leave: Any) -> None:
    mode: Any = inference_mode
    mode.__enter__, mode.__exit__ = enter, leave


def _enter(context: inference_mode) -> None:
    if not getattr(_keeping, 'here', False):
        _ENTER(context)


def _exit(context: inference_mode, *error: Any) -> None:
    if hasattr(context, '_inference_mode_context'):
        _EXIT(context, *error)
