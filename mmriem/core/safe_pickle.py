"""Unpickling of plain values and numpy arrays in which no name from the file reaches code that was not written for it.

The real objects behind the names in a pickle are not safe to hand out: `numpy.dtype.__setstate__` takes memory flags
from the file as they are. So each name on a short list is bound to a stand-in that only keeps what the file says;
afterwards it is checked, and the real object built. A name that is not on the list is an error. The pickle is run by
`mmriem.core.pickle_machine`, which calls nothing else.
"""

from __future__ import annotations

import io
import pickle
import re
from typing import Any, BinaryIO

import numpy as np
import torch

from .pickle_machine import Allowance, Machine, StandIn

__all__ = ['ARRAYS', 'BYTES', 'Allowance', 'Array', 'Dtype', 'StandIn', 'build', 'load_arrays']

PLAIN_DTYPE = re.compile(r'b1|[iu][1248]|f[248]|c(8|16)|[SU]\d{1,4}')
MOST_DEPTH = 100
"""Levels of dictionaries, lists and tuples in one another."""


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
        return np.dtype(f'{self.order}{self.code}')


class Array(StandIn):
    """Stands in for `numpy.ndarray` and for the function that numpy reconstructs arrays with."""

    def __init__(self, *layout: Any) -> None:
        self.state: tuple = ()

    def __setstate__(self, state: tuple) -> None:
        self.state = state

    @property
    def n_bytes(self) -> int:
        """See `StandIn`."""
        return len(self.state[4])

    def build(self) -> np.ndarray:
        """See `StandIn`."""
        _, shape, dtype, fortran, data = self.state
        flat = np.frombuffer(data, dtype.build()) if data else np.empty(0, dtype.build())
        return flat.reshape(shape, order='F' if fortran else 'C').copy()


def scalar(dtype: Dtype, data: bytes) -> Any:
    """Stands in for the function that numpy reconstructs scalars with."""
    return np.frombuffer(data, dtype.build()).reshape(())[()]


def _latin1(text: str, encoding: str) -> bytes:
    """Stands in for `_codecs.encode`, which spells bytes in a pickle of protocol 2."""
    if encoding not in ('latin1', b'latin1'):
        raise pickle.UnpicklingError(f'Unsupported global: GLOBAL _codecs.encode (to {encoding!r:.40})')
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
BYTES = {'_codecs.encode': _latin1, 'builtins.bytes': _no_bytes}
"""Stand-ins for what a pickle of protocol 2 and less spells bytes with, where Python 3 wrote it."""


def build(tree: Any, allowance: Allowance) -> Any:
    """Replace the stand-ins in a tree of dicts, lists and tuples; dicts and lists are changed in place.

    Shared nodes stay shared.

    Args:
        tree: what was read.
        allowance: what may be copied.

    Raises:
        ValueError: an array or scalar that is not of a plain type, more than `MOST_DEPTH` levels, or a value that
            contains itself.
        pickle.UnpicklingError: many copies of the same bytes.
    """
    return _Builder(allowance).build(tree, 0)[0]


class _Builder:
    """Knows what takes the place of each node that was met, and how many levels are below it; None while it is open."""

    def __init__(self, allowance: Allowance) -> None:
        self.allowance = allowance
        self.done: dict[int, tuple[Any, int] | None] = {}

    def build(self, node: Any, depth: int) -> tuple[Any, int]:
        if not isinstance(node, _NODES):
            return node, 0
        known = self.done.get(id(node), ())
        if known is None:
            raise ValueError('a value that contains itself')
        if not known:
            if depth > MOST_DEPTH:
                raise ValueError(_TOO_DEEP)
            self.done[id(node)] = None
            known = self.done[id(node)] = self._built(node, depth)
        if depth + known[1] > MOST_DEPTH:
            raise ValueError(_TOO_DEEP)
        return known

    def _built(self, node: Any, depth: int) -> tuple[Any, int]:
        if isinstance(node, StandIn):
            self.allowance.take(node.n_bytes)
            return node.build(), 0
        if isinstance(node, torch.Tensor):
            vars(node).clear()  # attributes that the file hung on it, which a RieM module could take for its own
            return node, 0
        if isinstance(node, dict):
            items, height = self._all([*node.values(), getattr(node, '_metadata', None)], depth)
            for key, item in zip(list(node), items):
                node[key] = item
            return node, height
        items, height = self._all(node, depth)
        if isinstance(node, tuple):
            return type(node)(items), height
        node[:] = items
        return node, height

    def _all(self, nodes: Any, depth: int) -> tuple[list[Any], int]:
        built = [self.build(node, depth + 1) for node in nodes]
        return [value for value, _ in built], max((height for _, height in built), default=-1) + 1


_NODES = (dict, list, tuple, StandIn, torch.Tensor)
_TOO_DEEP = f'values nested more than {MOST_DEPTH} deep'


def load_arrays(stream: BinaryIO) -> Any:
    """What a file of `pickle.dump` holds, if that is plain values and numpy arrays; one of Python 2 has bytes as text.

    Raises:
        pickle.UnpicklingError: the file names a class or function that is not in `ARRAYS`.
        Exception: whatever a damaged file makes pickle or numpy raise.

    >>> import io
    >>> load_arrays(io.BytesIO(pickle.dumps({'data': np.arange(3)})))['data'].tolist()
    [0, 1, 2]
    """
    data = stream.read()
    allowance = Allowance(len(data))
    return build(Machine({**ARRAYS, **BYTES}, allowance, texts_are_bytes=True).run(io.BytesIO(data)), allowance)


def _text(value: str | bytes) -> str:
    return value.decode('latin1') if isinstance(value, bytes) else value
