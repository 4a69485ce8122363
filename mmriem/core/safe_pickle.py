"""Unpickling of plain values and numpy arrays in which no name from the file reaches code that was not written for it.

The real objects behind the names in a pickle are not safe to hand out: `numpy.dtype.__setstate__` takes memory flags
from the file as they are. So each name on a short list is bound to a stand-in that only keeps what the file says;
afterwards it is checked, and the real object built. A name that is not on the list is an error.
"""

from __future__ import annotations

import pickle
import re
from typing import Any, BinaryIO

import numpy as np
import torch

PLAIN_DTYPE = re.compile(r'b1|[iu][1248]|f[248]|c(8|16)|[SU]\d{1,4}')


class StandIn:
    """Takes the place of an object while a pickle is read."""

    def build(self) -> Any:
        """The object.

        Raises:
            ValueError: it is not a plain one.
        """
        raise NotImplementedError


class Dtype(StandIn):
    """Stands in for `numpy.dtype`."""

    def __init__(self, code: str | bytes, align: bool = False, copy: bool = False) -> None:
        self.code, self.order = _text(code), '='

    def __setstate__(self, state: tuple) -> None:
        self.order = _text(state[1])  # the rest (fields, size, flags) follows from the code for a plain type

    def build(self) -> np.dtype:
        """See `StandIn`."""
        if not PLAIN_DTYPE.fullmatch(self.code) or self.order not in ('<', '>', '=', '|'):
            raise ValueError(f'array of dtype {self.order}{self.code}')
        return np.dtype(self.code).newbyteorder(self.order)


class Array(StandIn):
    """Stands in for `numpy.ndarray` and for the function that numpy reconstructs arrays with."""

    def __init__(self, *layout: Any) -> None:
        self.state: tuple = ()

    def __setstate__(self, state: tuple) -> None:
        self.state = state

    def build(self) -> np.ndarray:
        """See `StandIn`."""
        _, shape, dtype, fortran, data = self.state
        flat = np.frombuffer(data, dtype.build()) if data else np.empty(0, dtype.build())
        return flat.reshape(shape, order='F' if fortran else 'C').copy()


def scalar(dtype: Dtype, data: bytes) -> np.generic:
    """Stands in for the function that numpy reconstructs scalars with."""
    return np.frombuffer(data, dtype.build()).reshape(())[()]


def _latin1(text: str, encoding: str) -> bytes:
    """Stands in for `_codecs.encode`, which spells bytes in a pickle of protocol 2."""
    if encoding != 'latin1':
        raise pickle.UnpicklingError(f'Unsupported global: GLOBAL _codecs.encode (to {encoding!r})')
    return text.encode('latin1')


def _no_bytes() -> bytes:
    """Stands in for `bytes`, which spells empty ones."""
    return b''


ARRAYS = {
    'numpy.dtype': Dtype,
    'numpy.ndarray': Array,
    'numpy.core.multiarray._reconstruct': Array,  # numpy 1
    'numpy._core.multiarray._reconstruct': Array,  # numpy 2
    'numpy.core.multiarray.scalar': scalar,
    'numpy._core.multiarray.scalar': scalar,
}
"""Stand-ins for what numpy's arrays and scalars are spelled with in a pickle."""
BYTES = {'_codecs.encode': _latin1, '__builtin__.bytes': _no_bytes}
"""Stand-ins for what a pickle of protocol 2 and less spells bytes with, where Python 3 wrote it."""


def build(tree: Any, done: dict[int, Any] | None = None) -> Any:
    """Replace the stand-ins in a tree of dicts, lists and tuples; dicts and lists are changed in place.

    Args:
        tree: what was read.
        done: maps the id of every node that was met to what takes its place, so shared nodes stay shared.

    Raises:
        ValueError: an array or scalar that is not of a plain type.
    """
    done = {} if done is None else done
    if id(tree) in done:
        return done[id(tree)]
    done[id(tree)] = tree
    if isinstance(tree, dict):
        for key, value in tree.items():
            tree[key] = build(value, done)
    elif type(tree) is list:
        tree[:] = [build(value, done) for value in tree]
    elif type(tree) is tuple:
        done[id(tree)] = tuple(build(value, done) for value in tree)
    elif isinstance(tree, StandIn):
        done[id(tree)] = tree.build()
    elif isinstance(tree, torch.Tensor):
        vars(tree).clear()  # attributes that the file hung on it, which a RieM module could take for its own
    return done[id(tree)]


def load_arrays(stream: BinaryIO) -> Any:
    """What a file of `pickle.dump` holds, if that is plain values and numpy arrays; one of Python 2 has bytes as text.

    Raises:
        pickle.UnpicklingError: the file names a class or function that is not in `ARRAYS`.
        Exception: whatever a damaged file makes pickle or numpy raise.

    >>> import io
    >>> load_arrays(io.BytesIO(pickle.dumps({'data': np.arange(3)})))['data'].tolist()
    [0, 1, 2]
    """
    return build(_Unpickler(stream, encoding='bytes').load())


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        found = {**ARRAYS, **BYTES}.get(f'{module}.{name}')
        if found is None:
            raise pickle.UnpicklingError(f'Unsupported global: GLOBAL {module}.{name}')
        return found

    def persistent_load(self, identity: Any) -> Any:
        raise pickle.UnpicklingError('a reference to something outside of the file')


def _text(value: str | bytes) -> str:
    return value.decode('latin1') if isinstance(value, bytes) else value
