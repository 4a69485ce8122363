"""Unpickling of runner checkpoints in which no name from the file reaches code that was not written for it.

torch's weights-only unpickler builds tensors and plain containers, and looks other names up in an
allow-list. MMEngine's runner checkpoints need a few names more: `HistoryBuffer`, numpy scalars and arrays,
`ConfigDict`, and `getattr` for the methods that a `HistoryBuffer` carries. The real objects behind them are
not safe to hand out: `numpy.dtype.__setstate__` takes memory flags from the file as they are. So each name
is bound to a stand-in that only keeps what the file says; afterwards it is checked, and the real object
built.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from torch.serialization import add_safe_globals, clear_safe_globals, get_safe_globals

__all__ = ['load_plain']

PLAIN_DTYPE = re.compile(r'b1|[iu][1248]|f[248]|c(8|16)|[SU]\d{1,4}')
STATISTICS = ('min', 'max', 'mean', 'current')


class _Dtype:
    """Stands in for `numpy.dtype`."""

    def __init__(self, code: str, align: bool = False, copy: bool = False) -> None:
        self.code, self.order = code, '='

    def __setstate__(self, state: tuple) -> None:
        self.order = state[1]  # the rest (fields, size, flags) follows from the code for a plain type

    def build(self) -> np.dtype:
        if not PLAIN_DTYPE.fullmatch(self.code) or self.order not in ('<', '>', '=', '|'):
            raise ValueError(f'array of dtype {self.order}{self.code}')
        return np.dtype(self.code).newbyteorder(self.order)


class _Array:
    """Stands in for `numpy.ndarray` and for the function that numpy reconstructs arrays with."""

    def __init__(self, *layout: Any) -> None:
        self.state: tuple = ()

    def __setstate__(self, state: tuple) -> None:
        self.state = state

    def build(self) -> np.ndarray:
        _, shape, dtype, fortran, data = self.state
        flat = np.frombuffer(data, dtype.build()) if data else np.empty(0, dtype.build())
        return flat.reshape(shape, order='F' if fortran else 'C').copy()


class _History:
    """Stands in for `mmengine.logging.HistoryBuffer`."""

    def __setstate__(self, state: dict) -> None:
        self.state = state

    def build(self) -> HistoryBuffer:
        log, count = self.state['_log_history'], self.state['_count_history']
        return HistoryBuffer(log.build(), count.build(), self.state['max_length'])


def _scalar(dtype: _Dtype, data: bytes) -> np.generic:
    return np.frombuffer(data, dtype.build()).reshape(())[()]


def _history_method(owner: type, name: str) -> None:
    """Stands in for `getattr`. A `HistoryBuffer` has its statistics anyway, so there is nothing to fetch."""
    if owner is not _History or name not in STATISTICS:
        raise pickle.UnpicklingError(f'Unsupported global: GLOBAL getattr ({name!r} of {owner!r})')


def _plain_dict(items: dict | None = None) -> dict:
    return dict(items or {})


def _no_bytes() -> bytes:
    return b''


STAND_INS = {
    'mmengine.logging.history_buffer.HistoryBuffer': _History,
    'mmengine.config.config.ConfigDict': _plain_dict,
    'numpy.dtype': _Dtype,
    'numpy.ndarray': _Array,
    'numpy.core.multiarray._reconstruct': _Array,  # numpy 1
    'numpy._core.multiarray._reconstruct': _Array,  # numpy 2
    'numpy.core.multiarray.scalar': _scalar,
    'numpy._core.multiarray.scalar': _scalar,
    'builtins.getattr': _history_method,
    'builtins.bytes': _no_bytes,  # how pickle protocol 2 spells b''
}


@contextmanager
def _only_stand_ins() -> Iterator[None]:
    """Make the stand-ins the whole allow-list; what other code has allowed comes back at the end."""
    before = get_safe_globals()
    clear_safe_globals()
    add_safe_globals([(stand_in, name) for name, stand_in in STAND_INS.items()])
    try:
        yield
    finally:
        clear_safe_globals()
        add_safe_globals(before)


def _build(tree: Any, done: dict[int, Any]) -> Any:
    """Replace the stand-ins in a tree of dicts, lists and tuples; dicts and lists are changed in place.

    `done` maps the id of every node that was met to what takes its place, so shared nodes stay shared.
    """
    if id(tree) in done:
        return done[id(tree)]
    done[id(tree)] = tree
    if isinstance(tree, dict):
        for key, value in tree.items():
            tree[key] = _build(value, done)
    elif type(tree) is list:
        tree[:] = [_build(value, done) for value in tree]
    elif type(tree) is tuple:
        done[id(tree)] = tuple(_build(value, done) for value in tree)
    elif isinstance(tree, (_Array, _Dtype, _History)):
        done[id(tree)] = tree.build()
    elif isinstance(tree, torch.Tensor):
        vars(tree).clear()  # attributes that the file hung on it, which a RieM module could take for its own
    return done[id(tree)]


def load_plain(path: str, map_location: Any = 'cpu') -> Any:
    """Read a file of `torch.save` that holds tensors, plain values and MMEngine's logs, and nothing else.

    Args:
        path: the file.
        map_location: as for `torch.load`.

    Raises:
        pickle.UnpicklingError: the file names a class or function that is not on the list; the message has
            `GLOBAL NAME` in it.
        Exception: whatever a damaged file makes torch or numpy raise.
    """
    with _only_stand_ins():
        tree = torch.load(path, map_location=map_location, weights_only=True)
    return _build(tree, {})
