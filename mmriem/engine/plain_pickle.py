"""Reading of `torch.save` files without torch's unpickler.

torch reads with protection too, but with names on its list that ask for any memory (`bytearray`) or time
(`_codecs.encode` with any codec), and compressed archives; the list belongs to the whole process, and before torch 2.6
it took no stand-ins. So both formats of `torch.save` are read here: the zip archive, and the pickles one after the
other that came before it. The pickles are run by `mmriem.core.pickle_machine`. Nothing is allocated beyond the size of
the file.
"""

from __future__ import annotations

import math
import os
import pickle
import sys
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor, nn

from mmriem.core.pickle_machine import Allowance, Machine, StandIn, elements, mapping
from mmriem.core.safe_pickle import BYTES, build

__all__ = ['read_plain']

MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
"""What a file of the older format begins with."""
PART = 1 << 20
"""Bytes of a storage that are read at a time."""
MOST_DIMENSIONS = 64
EXPANDED = 1 << 24
"""Elements that a tensor may have beyond the bytes of its storage, where these are repeated (`Tensor.expand`)."""


def read_plain(path: str | os.PathLike, stand_ins: Mapping[str, Any], map_location: Any = 'cpu') -> Any:
    """What `torch.load` gives for a file that holds tensors, plain values, and what there is a stand-in for.

    Args:
        path: the file.
        stand_ins: by name in the pickle, classes derived from `StandIn` and functions.
        map_location: as for `torch.load`.

    Raises:
        pickle.UnpicklingError: the file names something else, with `GLOBAL NAME` in the message, or is damaged.
        Exception: whatever arguments that do not fit make torch raise.
    """
    size = os.path.getsize(path)
    storages = _Storages(size, torch.serialization._get_restore_location(map_location))
    names, allowance = {**PLAIN, **stand_ins}, Allowance(size)
    if zipfile.is_zipfile(path):
        return build(_read_archive(path, names, storages, allowance), allowance)
    with Path(path).open('rb') as file:
        return build(_read_sequence(_Bounded(file, size), names, storages, allowance), allowance)


class _Bounded:
    """A file of which no more is asked than there is: Python makes room for all that is asked."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self.file, self.size, self.readline = file, size, file.readline

    def read(self, count: int = -1) -> bytes:
        left = max(self.size - self.file.tell(), 0)
        return self.file.read(left if count < 0 else min(count, left))


@dataclass(frozen=True)
class _Storage:
    """Memory that tensors share, and the type of its numbers."""

    untyped: torch.UntypedStorage
    dtype: torch.dtype


@dataclass(frozen=True)
class _StorageType:
    dtype: torch.dtype


class _Storages:
    """The storages that a file may have: of `limit` bytes together."""

    def __init__(self, limit: int, restore: Callable[[Any, str], Any]) -> None:
        self.limit, self.restore = limit, restore
        self.found: dict[str, tuple[_Storage, torch.UntypedStorage]] = {}

    def new(self, kind: Any, key: Any, location: Any, numel: Any) -> tuple[_Storage, torch.UntypedStorage]:
        """The storage of a key, and its memory on the CPU where that is still to be filled from the file."""
        if not isinstance(kind, _StorageType) or type(key) is not str or type(numel) is not int or numel < 0:
            raise pickle.UnpicklingError('a storage that is none')
        size = numel * _itemsize(kind.dtype)
        if key not in self.found:
            if size > self.limit:
                raise pickle.UnpicklingError(f'storage {key} of {size} bytes, more than the file holds')
            self.limit -= size
            memory = torch.UntypedStorage(size)
            self.found[key] = _Storage(self.restore(memory, location), kind.dtype), memory
        storage, memory = self.found[key]
        if memory.nbytes() != size:
            raise pickle.UnpicklingError(f'storage {key} of {memory.nbytes()} bytes and of {size}')
        return _Storage(storage.untyped, kind.dtype), memory


def _read_archive(path: str | os.PathLike, names: Mapping[str, Any], storages: _Storages, allowance: Allowance) -> Any:
    with zipfile.ZipFile(path) as archive:
        if any(name.endswith('/constants.pkl') for name in archive.namelist()):
            raise pickle.UnpicklingError('a TorchScript archive')
        records = [name for name in archive.namelist() if name.count('/') == 1 and name.endswith('/data.pkl')]
        if len(records) != 1:
            raise pickle.UnpicklingError('a zip archive without data.pkl')
        folder = records[0][: -len('data.pkl')]
        order = folder + 'byteorder'
        if order in archive.namelist() and b''.join(_parts(archive, order, 16)) != sys.byteorder.encode():
            raise pickle.UnpicklingError('written by a machine of another byte order')

        def load(kind: str, *identity: Any) -> _Storage:
            if kind != 'storage' or len(identity) != 4 or type(identity[1]) is not str:
                raise pickle.UnpicklingError('a reference to something outside of the file')
            known = identity[1] in storages.found
            storage, memory = storages.new(*identity)
            if not known:
                _fill(memory, storage, _parts(archive, f'{folder}data/{identity[1]}', memory.nbytes()))
            return storage

        pickled = b''.join(_parts(archive, records[0], allowance.size))
        return Machine(names, allowance, load).run(BytesIO(pickled))


def _parts(archive: zipfile.ZipFile, name: str, most: int) -> Iterator[bytes]:
    """A record of an archive; torch never compresses them, so a small file is no large one."""
    info = archive.getinfo(name)
    if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
        raise pickle.UnpicklingError(
            f'the compressed record {name} of {info.file_size} bytes, where torch.save compresses nothing'
        )
    if info.file_size > most:
        raise pickle.UnpicklingError(f'the record {name} of {info.file_size} bytes, where {most} are expected')
    with archive.open(info) as record:
        yield from iter(partial(record.read, PART), b'')


def _read_sequence(file: _Bounded, names: Mapping[str, Any], storages: _Storages, allowance: Allowance) -> Any:
    """Magic number, protocol, sizes of the writer's integers, the tree, the keys, and each key's numbers."""

    def load(kind: str, *identity: Any) -> _Storage:
        if kind != 'storage' or len(identity) not in (4, 5) or identity[4:] not in ((), (None,)):
            raise pickle.UnpicklingError('a reference to something outside of the file')
        return storages.new(*identity[:4])[0]

    heading = []
    for known in (MAGIC, PROTOCOL, None):
        heading.append(Machine(names, allowance).run(file))
        if type(heading[-1]) is not (dict if known is None else int) or known not in (None, heading[-1]):
            raise pickle.UnpicklingError('another pickle, without the magic number of torch.save')
    if heading[2].get('little_endian', True) != (sys.byteorder == 'little'):
        raise pickle.UnpicklingError('written by a machine of another byte order')
    tree = Machine(names, allowance, load).run(file)
    keys = Machine({}, allowance).run(file)
    if type(keys) is not list or len(keys) != len(storages.found) or any(type(key) is not str for key in keys):
        raise pickle.UnpicklingError('storages that are not those of the tensors')
    if set(keys) != set(storages.found):
        raise pickle.UnpicklingError('storages that are not those of the tensors')
    for key in keys:
        storage, memory = storages.found[key]
        count = int.from_bytes(file.read(8), 'little')
        if count * _itemsize(storage.dtype) != memory.nbytes():
            raise pickle.UnpicklingError(f'storage {key}: {count} numbers in {memory.nbytes()} bytes')
        parts = (file.read(min(PART, memory.nbytes() - at)) for at in range(0, memory.nbytes(), PART))
        _fill(memory, storage, parts)
    return tree


def _fill(memory: torch.UntypedStorage, storage: _Storage, parts: Iterable[bytes]) -> None:
    """Writes the numbers of a storage, part by part, and moves them to where it is."""
    source = torch.empty(0, dtype=torch.uint8).set_(memory)
    bytes_of, at = source.numpy(), 0
    for part in parts:
        if at + len(part) > len(bytes_of):
            break
        bytes_of[at : at + len(part)] = np.frombuffer(part, np.uint8)
        at += len(part)
    if at != len(bytes_of):
        raise pickle.UnpicklingError(f'a storage of {len(bytes_of)} bytes of which {at} are there')
    if storage.untyped._cdata != memory._cdata:
        torch.empty(0, dtype=torch.uint8, device=storage.untyped.device).set_(storage.untyped).copy_(source)


def _itemsize(dtype: torch.dtype) -> int:
    return torch.empty((), dtype=dtype).element_size()


def _tensor(storage: _Storage, offset: int, size: tuple, stride: tuple, *_: Any) -> Tensor:
    """Stands in for `_rebuild_tensor` and `_rebuild_tensor_v2`: gradients, hooks and metadata are left out."""
    return _view(storage, storage.dtype, offset, size, stride)


def _tensor_of_dtype(
    storage: _Storage, offset: int, size: tuple, stride: tuple, grad: bool, hooks: Any, dtype: torch.dtype, *_: Any
) -> Tensor:
    """Stands in for `_rebuild_tensor_v3`."""
    return _view(storage, dtype, offset, size, stride)


def _view(storage: _Storage, dtype: torch.dtype, offset: int, size: tuple, stride: tuple) -> Tensor:
    if not isinstance(storage, _Storage) or not isinstance(dtype, torch.dtype):
        raise pickle.UnpicklingError('a tensor of something else than a storage')
    if not isinstance(size, tuple) or not isinstance(stride, tuple) or not len(size) == len(stride) <= MOST_DIMENSIONS:
        raise pickle.UnpicklingError('a tensor of sizes and strides that do not go together')
    if any(type(number) is not int or number < 0 for number in (offset, *size, *stride)):
        raise pickle.UnpicklingError('a tensor of a size or stride that is none')
    if 0 not in size:
        last = offset + sum((count - 1) * step for count, step in zip(size, stride))
        if (last + 1) * _itemsize(dtype) > storage.untyped.nbytes():
            raise pickle.UnpicklingError('a tensor larger than its storage')
    if math.prod(size) > EXPANDED + storage.untyped.nbytes():
        raise pickle.UnpicklingError(f'a tensor of {math.prod(size)} elements in a storage of less')
    return torch.empty(0, dtype=dtype, device=storage.untyped.device).set_(
        storage.untyped, offset if 0 not in size else 0, tuple(size), tuple(stride)
    )


def _sparse(layout: str, data: tuple) -> Tensor:
    """Stands in for `_rebuild_sparse_tensor`: of coordinates alone, as `to_sparse` makes them."""
    if layout != 'torch.sparse_coo' or len(data) < 3 or not all(isinstance(part, Tensor) for part in data[:2]):
        raise pickle.UnpicklingError(f'a sparse tensor of layout {layout!r:.40}')
    return torch.sparse_coo_tensor(data[0], data[1], _size(data[2]), check_invariants=True)


def _layout(name: str) -> str:
    return name


def _parameter(data: Tensor, requires_grad: bool = True, *_: Any) -> nn.Parameter:
    if not isinstance(data, Tensor):
        raise pickle.UnpicklingError('a parameter that is no tensor')
    return nn.Parameter(data, requires_grad=bool(requires_grad) and data.is_floating_point())


def _with_attributes(function: Any, kind: Any, arguments: tuple, state: Any) -> Tensor:
    """Stands in for `_rebuild_from_type_v2`, without the attributes."""
    if not any(function is known for known in (_tensor, _tensor_of_dtype, _parameter)):
        raise pickle.UnpicklingError('a tensor with attributes that is none')
    return function(*arguments)


def _number(*parts: Any) -> complex:
    """Stands in for `complex`."""
    if not all(type(part) is float for part in parts):
        raise pickle.UnpicklingError('a complex number of something else than numbers')
    return complex(*parts)


def _size(sizes: Any) -> torch.Size:
    """Stands in for `torch.Size`."""
    plain = type(sizes) in (list, tuple, torch.Size) and all(type(size) is int for size in sizes)
    if not plain or len(sizes) > MOST_DIMENSIONS:
        raise pickle.UnpicklingError('a size that is none')
    return torch.Size(sizes)


def _device(kind: Any, *index: Any) -> torch.device:
    """Stands in for `torch.device`."""
    if type(kind) is not str or any(type(number) is not int for number in index):
        raise pickle.UnpicklingError('a device that is none')
    return torch.device(kind, *index)


class Unreadable(StandIn):
    """Takes the place of a tensor that is not dense.

    Attributes:
        wrong: what it is, for an error.
    """

    wrong = ''

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass

    def build(self) -> Unreadable:
        """Itself: it is an error only where it is needed."""
        return self


def _unreadable(words: str) -> type[Unreadable]:
    return type('Unreadable', (Unreadable,), {'wrong': words})


REBUILT: dict[str, Any] = {
    **BYTES,
    'collections.OrderedDict': partial(mapping, OrderedDict),
    'collections.Counter': partial(mapping, Counter),
    'builtins.set': partial(elements, set),
    'builtins.complex': _number,
    'torch.Size': _size,
    'torch.device': _device,
    'torch.nn.parameter.Parameter': _parameter,
    'torch._utils._rebuild_tensor': _tensor,
    'torch._utils._rebuild_tensor_v2': _tensor,
    'torch._utils._rebuild_tensor_v3': _tensor_of_dtype,
    'torch._utils._rebuild_sparse_tensor': _sparse,
    'torch.serialization._get_layout': _layout,
    'torch._utils._rebuild_parameter': _parameter,
    'torch._utils._rebuild_parameter_with_state': _parameter,
    'torch._tensor._rebuild_from_type_v2': _with_attributes,
    'torch._utils._rebuild_qtensor': _unreadable('a quantised one; take it from before the quantisation'),
    'torch._utils._rebuild_sparse_csr_tensor': _unreadable('a sparse one; make it dense'),
    'torch._utils._rebuild_nested_tensor': _unreadable('a nested one; make it dense'),
    'torch._utils._rebuild_meta_tensor_no_storage': _unreadable(
        'one without values, on the device meta; load its values'
    ),
}
"""What tensors and plain containers are spelled with, and what is called in its place."""

STORAGES = {
    'Double': torch.float64, 'Float': torch.float32, 'Half': torch.float16, 'BFloat16': torch.bfloat16,
    'Long': torch.int64, 'Int': torch.int32, 'Short': torch.int16, 'Char': torch.int8, 'Byte': torch.uint8,
    'Bool': torch.bool, 'ComplexDouble': torch.complex128, 'ComplexFloat': torch.complex64,
    'QInt8': torch.int8, 'QUInt8': torch.uint8, 'QInt32': torch.int32,
}  # fmt: skip

PLAIN: dict[str, Any] = {
    **REBUILT,
    **{f'torch.{name}Storage': _StorageType(dtype) for name, dtype in STORAGES.items()},
    'torch.storage.UntypedStorage': _StorageType(torch.uint8),
    # only named: the type of a tensor with attributes, and how one is quantised
    **{name: name for name in ('torch.Tensor', 'torch.per_tensor_affine', 'torch.per_channel_affine')},
    **{str(dtype): dtype for dtype in vars(torch).values() if isinstance(dtype, torch.dtype)},
}
"""All names that a file may have."""
