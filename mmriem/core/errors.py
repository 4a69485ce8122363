"""The one exception that mmriem raises for what a user can put right."""

from __future__ import annotations

import reprlib
from collections.abc import Iterator
from contextlib import contextmanager


class RiemError(RuntimeError):
    """Bad input, told in one sentence: the file or key, what was expected, what was found, what to do.

    The command line tools print it without a traceback and exit with status 1.
    """


def os_reason(error: Exception) -> str:
    """Why the system refuses, in its words and without its number: the message names the file already."""
    return getattr(error, 'strerror', None) or str(error)


class Hopeless(RiemError):
    """A budget so small that the network would be left without its function.

    Attributes:
        size: bytes of about the smallest file that is not.
    """

    def __init__(self, message: str, size: int) -> None:
        super().__init__(message)
        self.size = size


class Interrupted(RiemError):
    """The work could not go on, through no fault of what was asked for; what is finished is worth keeping."""


_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = _REPR.maxlong = 60
_REPR.maxlevel = 3


def brief(value: object) -> str:
    """``repr`` of a value of any size and depth, cut to what an error message can bear."""
    return _REPR.repr(value)


@contextmanager
def out_of_memory(what: str) -> Iterator[None]:
    """Makes one RiemError of what Python, numpy or torch raise inside where there is not enough memory.

    Args:
        what: needs it, a file.
    """
    try:
        yield
    except RiemError:
        raise
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not any(word in str(error).lower() for word in _OF_ALLOCATORS):
            raise
        raise RiemError(
            f'{what}: expected enough memory for its tensors, found too little; close other programs'
        ) from error


_OF_ALLOCATORS = ('allocator', 'allocate memory', 'out of memory')
"""Words in the messages of torch's allocators, which raise a RuntimeError."""


@contextmanager
def naming(what: str) -> Iterator[None]:
    """Puts ``what``, a file or key, before the message of each RiemError raised inside."""
    try:
        yield
    except RiemError as error:
        raise RiemError(f'{what}: {error}') from error
