"""Reading of `torch.save` files without torch's unpickler, for versions of torch that cannot be told what to allow.

Before torch 2.6 the allow-list of `weights_only=True` was fixed or took no stand-ins, and TorchScript archives were run
all the same. So both formats of `torch.save` are read here: the zip archive, and the pickles one after the other that
came before it. A pickle is a program. `_Machine` runs the instructions that build plain values and knows no others:
it imports nothing, a name is looked up in one table, only what is in that table is called, and an attribute is set
nowhere but on a stand-in and, of a state dict, `_metadata`. Nothing is allocated beyond the size of the file.
"""

from __future__ import annotations

import io
import os
import pickle
import pickletools
import sys
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn

from mmriem.core.safe_pickle import BYTES, StandIn

__all__ = ['read_plain']

MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
"""What a file of the older format begins with."""


def read_plain(path: str | os.PathLike, stand_ins: Mapping[str, Any], map_location: Any = 'cpu') -> Any:
    """What `torch.load` gives for a file that holds tensors, plain values, and what there is a stand-in for.

    Args:
        path: the file.
        stand_ins: by name in the pickle, classes derived from `StandIn` and functions; they are left in the tree.
        map_location: as for `torch.load`.

    Raises:
        pickle.UnpicklingError: the file names something else, with `GLOBAL NAME` in the message, or is damaged.
        Exception: whatever arguments that do not fit make torch raise.
    """
    reader = _Storages(os.path.getsize(path), torch.serialization._get_restore_location(map_location))
    names = {**PLAIN, **stand_ins}
    if zipfile.is_zipfile(path):
        return _read_archive(path, names, reader)
    with Path(path).open('rb') as file:
        return _read_sequence(file, names, reader)


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


def _read_archive(path: str | os.PathLike, names: Mapping[str, Any], storages: _Storages) -> Any:
    with zipfile.ZipFile(path) as archive:
        records = [name for name in archive.namelist() if name.count('/') == 1 and name.endswith('/data.pkl')]
        if len(records) != 1:
            raise pickle.UnpicklingError('a zip archive without data.pkl')
        folder = records[0][: -len('data.pkl')]
        if folder + 'constants.pkl' in archive.namelist():
            raise pickle.UnpicklingError('a TorchScript archive, which is a program')
        order = folder + 'byteorder'
        if order in archive.namelist() and _record(archive, order, 16).decode('ascii', 'replace') != sys.byteorder:
            raise pickle.UnpicklingError('written by a machine of another byte order')

        def load(kind: str, *identity: Any) -> _Storage:
            if kind != 'storage' or len(identity) != 4:
                raise pickle.UnpicklingError('a reference to something outside of the file')
            known = identity[1] in storages.found
            storage, memory = storages.new(*identity)
            if not known:
                _fill(memory, storage, _record(archive, f'{folder}data/{identity[1]}', memory.nbytes()))
            return storage

        return _Machine(names, load).run(io.BytesIO(_record(archive, records[0], os.path.getsize(path))))


def _record(archive: zipfile.ZipFile, name: str, most: int) -> bytes:
    """A record of an archive; torch never compresses them, so a small file is no large one."""
    info = archive.getinfo(name)
    if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size or info.file_size > most:
        raise pickle.UnpicklingError(f'{name}: {info.file_size} bytes, compressed to {info.compress_size}')
    return archive.read(info)


def _read_sequence(file: BinaryIO, names: Mapping[str, Any], storages: _Storages) -> Any:
    """Magic number, protocol, sizes of the writer's integers, the tree, the keys, and each key's numbers."""

    def load(kind: str, *identity: Any) -> _Storage:
        if kind != 'storage' or len(identity) not in (4, 5) or identity[4:] not in ((), (None,)):
            raise pickle.UnpicklingError('a reference to something outside of the file')
        return storages.new(*identity[:4])[0]

    try:
        heading = [_Machine({}, load).run(file) for _ in range(3)]
    except pickle.UnpicklingError as error:
        if 'GLOBAL' not in str(error):
            raise
        heading = []  # another pickle, of objects
    if heading[:2] != [MAGIC, PROTOCOL] or not isinstance(heading[2], dict):
        raise pickle.UnpicklingError('no magic number of torch.save: another pickle')
    if heading[2].get('little_endian', True) != (sys.byteorder == 'little'):
        raise pickle.UnpicklingError('written by a machine of another byte order')
    tree = _Machine(names, load).run(file)
    keys = _Machine({}, load).run(file)
    if not isinstance(keys, list) or sorted(map(str, keys)) != sorted(storages.found):
        raise pickle.UnpicklingError('storages that are not those of the tensors')
    for key in keys:
        storage, memory = storages.found[key]
        count = int.from_bytes(file.read(8), 'little')
        if count * _itemsize(storage.dtype) != memory.nbytes():
            raise pickle.UnpicklingError(f'storage {key}: {count} numbers in {memory.nbytes()} bytes')
        _fill(memory, storage, file.read(memory.nbytes()))
    return tree


def _fill(memory: torch.UntypedStorage, storage: _Storage, data: bytes) -> None:
    if len(data) != memory.nbytes():
        raise pickle.UnpicklingError(f'a storage of {memory.nbytes()} bytes of which {len(data)} are there')
    if data:
        source = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        for target in {memory._cdata: memory, storage.untyped._cdata: storage.untyped}.values():
            torch.empty(0, dtype=torch.uint8, device=target.device).set_(target).copy_(source)


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
    if not isinstance(storage, _Storage) or not isinstance(dtype, torch.dtype) or len(size) != len(stride):
        raise pickle.UnpicklingError('a tensor of something else than a storage')
    if any(type(number) is not int or number < 0 for number in (offset, *size, *stride)):
        raise pickle.UnpicklingError('a tensor of a size or stride that is none')
    if 0 not in size:
        last = offset + sum((count - 1) * step for count, step in zip(size, stride))
        if (last + 1) * _itemsize(dtype) > storage.untyped.nbytes():
            raise pickle.UnpicklingError('a tensor larger than its storage')
    return torch.empty(0, dtype=dtype, device=storage.untyped.device).set_(
        storage.untyped, offset if 0 not in size else 0, tuple(size), tuple(stride)
    )


def _sparse(layout: str, data: tuple) -> Tensor:
    """Stands in for `_rebuild_sparse_tensor`: of coordinates alone, as `to_sparse` makes them."""
    if layout != 'torch.sparse_coo' or len(data) < 3 or not all(isinstance(part, Tensor) for part in data[:2]):
        raise pickle.UnpicklingError(f'a sparse tensor of layout {layout!r}')
    return torch.sparse_coo_tensor(data[0], data[1], tuple(data[2]), check_invariants=True)


def _layout(name: str) -> str:
    return name


def _parameter(data: Tensor, requires_grad: bool = True, *_: Any) -> nn.Parameter:
    if not isinstance(data, Tensor):
        raise pickle.UnpicklingError('a parameter that is no tensor')
    return nn.Parameter(data, requires_grad=bool(requires_grad) and data.is_floating_point())


def _with_attributes(function: Any, kind: Any, arguments: tuple, state: Any) -> Tensor:
    """Stands in for `_rebuild_from_type_v2`, without the attributes."""
    if function not in (_tensor, _tensor_of_dtype, _parameter):
        raise pickle.UnpicklingError(f'Unsupported global: GLOBAL {function!r}')
    return function(*arguments)


def _only(kind: type, *types: type) -> Callable[..., Any]:
    """A constructor that takes arguments of these types, so that a number cannot ask for memory."""

    def make(*arguments: Any) -> Any:
        if not all(type(argument) in types for argument in arguments):
            raise pickle.UnpicklingError(f'{kind.__name__} of {[type(argument).__name__ for argument in arguments]}')
        return kind(*arguments)

    return make


REBUILT: dict[str, Any] = {
    '_codecs.encode': BYTES['_codecs.encode'],
    'collections.OrderedDict': _only(OrderedDict, list, dict),
    'collections.Counter': _only(Counter, dict),
    'builtins.set': _only(set, list),
    'builtins.complex': _only(complex, float),
    'torch.Size': _only(torch.Size, list, tuple),
    'torch.device': _only(torch.device, str, int),
    'torch.nn.parameter.Parameter': _parameter,
    'torch._utils._rebuild_tensor': _tensor,
    'torch._utils._rebuild_tensor_v2': _tensor,
    'torch._utils._rebuild_tensor_v3': _tensor_of_dtype,
    'torch._utils._rebuild_sparse_tensor': _sparse,
    'torch.serialization._get_layout': _layout,
    'torch._utils._rebuild_parameter': _parameter,
    'torch._utils._rebuild_parameter_with_state': _parameter,
    'torch._tensor._rebuild_from_type_v2': _with_attributes,
}
"""What tensors and plain containers are spelled with, and what is called in its place."""

STORAGES = {
    'Double': torch.float64, 'Float': torch.float32, 'Half': torch.float16, 'BFloat16': torch.bfloat16,
    'Long': torch.int64, 'Int': torch.int32, 'Short': torch.int16, 'Char': torch.int8, 'Byte': torch.uint8,
    'Bool': torch.bool, 'ComplexDouble': torch.complex128, 'ComplexFloat': torch.complex64,
}  # fmt: skip

PLAIN: dict[str, Any] = {
    **REBUILT,
    **{f'torch.{name}Storage': _StorageType(dtype) for name, dtype in STORAGES.items()},
    'torch.storage.UntypedStorage': _StorageType(torch.uint8),
    'torch.Tensor': 'torch.Tensor',  # only named, as the type of a tensor with attributes
    **{str(dtype): dtype for dtype in vars(torch).values() if isinstance(dtype, torch.dtype)},
}
"""All names that a file may have."""


class _Machine:
    """Runs one pickle."""

    def __init__(self, names: Mapping[str, Any], load: Callable[..., Any]) -> None:
        self.names, self.load = names, load
        self.callable = {id(named) for named in names.values() if callable(named)}
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def run(self, stream: BinaryIO) -> Any:
        """The tree, once `STOP` is reached; the stream is left behind it."""
        try:
            for instruction, argument, _ in pickletools.genops(stream):
                if instruction.name == 'STOP':
                    return self.stack.pop()
                step = _STEPS.get(instruction.name)
                if step is None:
                    raise pickle.UnpicklingError(f'Unsupported instruction {instruction.name}')
                step(self, argument)
        except (IndexError, KeyError) as error:
            raise pickle.UnpicklingError(f'a damaged pickle ({type(error).__name__}: {error})') from error
        raise pickle.UnpicklingError('a pickle without an end')

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def mark(self, _: None) -> None:
        self.marks.append(self.stack)
        self.stack = []

    def marked(self) -> list[Any]:
        """What was pushed since the last mark, which is taken off."""
        items, self.stack = self.stack, self.marks.pop()
        return items

    def popped(self, count: int) -> list[Any]:
        if len(self.stack) < count:
            raise IndexError('empty stack')
        items = self.stack[len(self.stack) - count :]
        del self.stack[len(self.stack) - count :]
        return items

    def name(self, full: str) -> None:
        if full.startswith('__builtin__.'):  # what Python 2, and so pickle protocol 2, calls it
            full = full.replace('__builtin__', 'builtins', 1)
        if full not in self.names:
            raise pickle.UnpicklingError(f'Unsupported global: GLOBAL {full}')
        self.push(self.names[full])

    def stack_name(self, _: None) -> None:
        module, name = self.popped(2)
        self.name(f'{module}.{name}')

    def call(self, _: None) -> None:
        function, arguments = self.popped(2)
        if id(function) not in self.callable or type(arguments) is not tuple:
            raise pickle.UnpicklingError(f'Unsupported global: GLOBAL {type(function).__name__} (called)')
        self.push(function(*arguments))

    def build(self, _: None) -> None:
        built, state = self.popped(2)
        if isinstance(built, StandIn):
            built.__setstate__(state)
        elif type(built) is OrderedDict and type(state) is dict:
            metadata = state.get('_metadata')
            if isinstance(metadata, OrderedDict):
                built._metadata = metadata
        else:
            raise pickle.UnpicklingError(f'a state for {type(built).__name__}')
        self.push(built)

    def add(self, target: Any, items: list[Any]) -> None:
        kind = type(target)
        if kind is list:
            target.extend(items)
        elif kind is set:
            target.update(items)
        else:
            raise pickle.UnpicklingError(f'items for {kind.__name__}')

    def append(self, _: None) -> None:
        target, item = self.popped(2)
        self.add(target, [item])
        self.push(target)

    def append_all(self, _: None) -> None:
        items = self.marked()
        self.add(self.stack[-1], items)

    def set_all(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) not in (dict, OrderedDict, Counter) or len(items) % 2:
            raise pickle.UnpicklingError(f'keys for {type(target).__name__}')
        for key, value in zip(items[::2], items[1::2]):
            target[key] = value

    def refer(self, _: None) -> None:
        (identity,) = self.popped(1)
        if type(identity) is not tuple or not identity:
            raise pickle.UnpicklingError('a reference to something outside of the file')
        self.push(self.load(*identity))

    def remember(self, place: int | None) -> None:
        self.memo[len(self.memo) if place is None else place] = self.stack[-1]

    def recall(self, place: int) -> None:
        self.push(self.memo[place])


def _literals() -> dict[str, Callable[[_Machine, Any], None]]:
    numbers = ('INT', 'BININT', 'BININT1', 'BININT2', 'LONG', 'LONG1', 'LONG4', 'FLOAT', 'BINFLOAT')
    texts = ('STRING', 'BINSTRING', 'SHORT_BINSTRING', 'UNICODE', 'BINUNICODE', 'SHORT_BINUNICODE', 'BINUNICODE8')
    data = ('BINBYTES', 'SHORT_BINBYTES', 'BINBYTES8', 'BYTEARRAY8')
    return dict.fromkeys((*numbers, *texts, *data), _Machine.push)


_STEPS: dict[str, Callable[[_Machine, Any], Any]] = {
    **_literals(),
    'PROTO': lambda m, _: None,
    'FRAME': lambda m, _: None,
    'NONE': lambda m, _: m.push(None),
    'NEWTRUE': lambda m, _: m.push(True),
    'NEWFALSE': lambda m, _: m.push(False),
    'EMPTY_LIST': lambda m, _: m.push([]),
    'EMPTY_TUPLE': lambda m, _: m.push(()),
    'EMPTY_DICT': lambda m, _: m.push({}),
    'EMPTY_SET': lambda m, _: m.push(set()),
    'MARK': _Machine.mark,
    'LIST': lambda m, _: m.push(m.marked()),
    'TUPLE': lambda m, _: m.push(tuple(m.marked())),
    'FROZENSET': lambda m, _: m.push(frozenset(m.marked())),
    'DICT': lambda m, _: (lambda items: (m.push({}), m.set_all(items)))(m.marked()),
    'TUPLE1': lambda m, _: m.push(tuple(m.popped(1))),
    'TUPLE2': lambda m, _: m.push(tuple(m.popped(2))),
    'TUPLE3': lambda m, _: m.push(tuple(m.popped(3))),
    'APPEND': _Machine.append,
    'APPENDS': _Machine.append_all,
    'ADDITEMS': _Machine.append_all,
    'SETITEM': lambda m, _: m.set_all(m.popped(2)),
    'SETITEMS': lambda m, _: m.set_all(m.marked()),
    'POP': lambda m, _: m.popped(1),
    'POP_MARK': lambda m, _: m.marked(),
    'DUP': lambda m, _: m.push(m.stack[-1]),
    'GET': _Machine.recall,
    'BINGET': _Machine.recall,
    'LONG_BINGET': _Machine.recall,
    'PUT': _Machine.remember,
    'BINPUT': _Machine.remember,
    'LONG_BINPUT': _Machine.remember,
    'MEMOIZE': _Machine.remember,
    'GLOBAL': lambda m, text: m.name(text.replace(' ', '.', 1)),
    'STACK_GLOBAL': _Machine.stack_name,
    'REDUCE': _Machine.call,
    'NEWOBJ': _Machine.call,
    'BUILD': _Machine.build,
    'BINPERSID': _Machine.refer,
}
"""What each instruction does; all others are refused."""
