"""A reader of pickles that hold plain values, and nothing else.

A pickle is a program. `Machine` runs the instructions that build plain values and knows no others: it imports nothing,
a name is looked up in one table, only what is in that table is called, and an attribute is set nowhere but on a
stand-in and, of a state dict, `_metadata`. What a call copies counts, so that a file that makes a million copies of one
of its values ends in an error, and keys are values whose hash takes no time: time and memory are in proportion to the
file.
"""

from __future__ import annotations

import pickle
import pickletools
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sized
from typing import Any, Protocol

import numpy as np
import torch

FREE, EACH = 1 << 16, 4
"""Elements that calls may copy: so many, and so many for each byte of the file."""
LONGEST_KEY = 16
"""Elements of a tuple that is a key."""
MOST_ODD_KEYS = 1000
"""Keys of one dictionary that are tuples or complex numbers, of which many can be made that all have one hash."""


class Stream(Protocol):
    """What pickles are read from."""

    def read(self, count: int = -1, /) -> bytes:
        """So many bytes, or all."""

    def readline(self) -> bytes:
        """Up to the next end of a line."""


class StandIn:
    """Takes the place of an object while a pickle is read."""

    @property
    def n_bytes(self) -> int:
        """What building it copies."""
        return 0

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError(f'a state for {type(self).__name__}')

    def build(self) -> Any:
        """The object.

        Raises:
            ValueError: it is not a plain one.
        """
        raise NotImplementedError


class Allowance:
    """What may be copied while a file of ``size`` bytes is read.

    Raises:
        pickle.UnpicklingError: from :meth:`take`, more than that.
    """

    def __init__(self, size: int) -> None:
        self.size, self.left = size, FREE + EACH * size

    def take(self, count: int) -> None:
        """Count so many elements."""
        self.left -= count
        if self.left < 0:
            raise pickle.UnpicklingError(f'more copies of its values than a file of {self.size} bytes may ask for')


def checked_key(key: Any, known: Sized = ()) -> Any:
    """The key of a dictionary or element of a set, if it is a small plain value.

    Args:
        key: what is to be one.
        known: those that are there.

    Raises:
        pickle.UnpicklingError: it is another one, of which Python might hash millions of parts, or fall over its depth,
            or one of `MOST_ODD_KEYS`.
    """
    parts = key if type(key) is tuple else (key,)
    if len(parts) > LONGEST_KEY or not all(_is_atom(part) for part in parts):
        raise pickle.UnpicklingError(f'a key that is no text or number but a {type(key).__name__}')
    if len(known) >= MOST_ODD_KEYS and isinstance(key, (tuple, complex, np.complexfloating)):
        raise pickle.UnpicklingError(f'more than {MOST_ODD_KEYS} keys, and a {type(key).__name__} among them')
    return key


def _is_atom(value: Any) -> bool:
    if type(value) is int:
        return value.bit_length() <= 64
    return value is None or type(value) in _ATOMS or isinstance(value, np.generic)


_ATOMS = (str, bytes, float, bool, complex, torch.dtype, torch.device)


def mapping(kind: type, items: Any = ()) -> Any:
    """A dictionary of that kind, of another one or of a list of pairs."""
    if type(items) not in (tuple, list, dict, OrderedDict):
        raise pickle.UnpicklingError(f'{kind.__name__} of a {type(items).__name__}')
    pairs = items.items() if isinstance(items, dict) else items
    made = kind()
    for pair in pairs:
        if type(pair) not in (tuple, list) or len(pair) != 2:
            raise pickle.UnpicklingError(f'{kind.__name__} of something else than pairs')
        made[checked_key(pair[0], made)] = pair[1]
    return made


def elements(kind: type, items: Any = ()) -> Any:
    """A set of that kind, of the items of a list."""
    if type(items) not in (tuple, list):
        raise pickle.UnpicklingError(f'{kind.__name__} of a {type(items).__name__}')
    made: set[Any] = set()
    for item in items:
        made.add(checked_key(item, made))
    return kind(made)


class Machine:
    """Runs one pickle.

    Args:
        names: what a file may name, by module and name: classes derived from `StandIn`, functions that are safe with
            any arguments, and values.
        allowance: what calls may copy.
        load: makes what a persistent reference of the file stands for; without it there must be none.
        texts_are_bytes: of Python 2, whose texts hold data.
    """

    def __init__(
        self,
        names: Mapping[str, Any],
        allowance: Allowance,
        load: Callable[..., Any] | None = None,
        texts_are_bytes: bool = False,
    ) -> None:
        self.names, self.allowance, self.load, self.texts_are_bytes = names, allowance, load, texts_are_bytes
        self.callable = {id(named) for named in names.values() if callable(named)}
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def run(self, stream: Stream) -> Any:
        """The tree, once `STOP` is reached; the stream is left behind it.

        Raises:
            pickle.UnpicklingError: it is more than values, or damaged; a name that is not in the table is in the
                message as `GLOBAL NAME`.
            Exception: what arguments that do not fit make the functions of the table raise.
        """
        try:
            for instruction, argument, _ in pickletools.genops(stream):  # type: ignore[arg-type]  # a stream is enough
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

    def push_text(self, value: str) -> None:
        self.stack.append(value.encode('latin1') if self.texts_are_bytes else value)

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
        self.name(f'{module}.{name}' if type(module) is type(name) is str else '?')

    def call(self, _: None) -> None:
        function, arguments = self.popped(2)
        if id(function) not in self.callable or type(arguments) is not tuple:
            raise pickle.UnpicklingError(f'Unsupported global: GLOBAL {type(function).__name__} (called)')
        self.allowance.take(len(arguments) + sum(len(each) for each in arguments if type(each) in _SIZED))
        self.push(function(*arguments))

    def build(self, _: None) -> None:
        built, state = self.popped(2)
        if isinstance(built, StandIn):
            built.__setstate__(state)
        elif type(built) is OrderedDict and type(state) is dict:
            metadata = state.get('_metadata')
            if isinstance(metadata, OrderedDict):
                vars(built)['_metadata'] = metadata
        else:
            raise pickle.UnpicklingError(f'a state for {type(built).__name__}')
        self.push(built)

    def add(self, target: Any, items: Iterable[Any]) -> None:
        if type(target) is list:
            target.extend(items)
        elif type(target) is set:
            for item in items:
                target.add(checked_key(item, target))
        else:
            raise pickle.UnpicklingError(f'items for {type(target).__name__}')

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
            target[checked_key(key, target)] = value

    def refer(self, _: None) -> None:
        (identity,) = self.popped(1)
        if self.load is None or type(identity) is not tuple or not identity:
            raise pickle.UnpicklingError('a reference to something outside of the file')
        self.push(self.load(*identity))

    def remember(self, place: int | None) -> None:
        self.memo[len(self.memo) if place is None else place] = self.stack[-1]

    def recall(self, place: int) -> None:
        self.push(self.memo[place])

    def dictionary(self, _: None) -> None:
        items = self.marked()
        self.push({})
        self.set_all(items)


_SIZED = (tuple, list, dict, OrderedDict, set, frozenset, str, bytes)


def _literals() -> dict[str, Callable[[Machine, Any], None]]:
    numbers = ('INT', 'BININT', 'BININT1', 'BININT2', 'LONG', 'LONG1', 'LONG4', 'FLOAT', 'BINFLOAT')
    texts = ('UNICODE', 'BINUNICODE', 'SHORT_BINUNICODE', 'BINUNICODE8')
    data = ('BINBYTES', 'SHORT_BINBYTES', 'BINBYTES8', 'BYTEARRAY8')
    old = ('STRING', 'BINSTRING', 'SHORT_BINSTRING')
    return {**dict.fromkeys((*numbers, *texts, *data), Machine.push), **dict.fromkeys(old, Machine.push_text)}


_STEPS: dict[str, Callable[[Machine, Any], Any]] = {
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
    'MARK': Machine.mark,
    'LIST': lambda m, _: m.push(m.marked()),
    'TUPLE': lambda m, _: m.push(tuple(m.marked())),
    'FROZENSET': lambda m, _: m.push(elements(frozenset, m.marked())),
    'DICT': Machine.dictionary,
    'TUPLE1': lambda m, _: m.push(tuple(m.popped(1))),
    'TUPLE2': lambda m, _: m.push(tuple(m.popped(2))),
    'TUPLE3': lambda m, _: m.push(tuple(m.popped(3))),
    'APPEND': Machine.append,
    'APPENDS': Machine.append_all,
    'ADDITEMS': Machine.append_all,
    'SETITEM': lambda m, _: m.set_all(m.popped(2)),
    'SETITEMS': lambda m, _: m.set_all(m.marked()),
    'POP': lambda m, _: m.popped(1),
    'POP_MARK': lambda m, _: m.marked(),
    'DUP': lambda m, _: m.push(m.stack[-1]),
    'GET': Machine.recall,
    'BINGET': Machine.recall,
    'LONG_BINGET': Machine.recall,
    'PUT': Machine.remember,
    'BINPUT': Machine.remember,
    'LONG_BINPUT': Machine.remember,
    'MEMOIZE': Machine.remember,
    'GLOBAL': lambda m, text: m.name(text.replace(' ', '.', 1)),
    'STACK_GLOBAL': Machine.stack_name,
    'REDUCE': Machine.call,
    'NEWOBJ': Machine.call,
    'BUILD': Machine.build,
    'BINPERSID': Machine.refer,
}
"""What each instruction does; all others are refused."""
