"""Files that are whole or absent: written under a temporary name in the same folder, then renamed.

A temporary name is `.NAME.TOKEN.riem-tmp`, of files and of folders alike, and nothing else ends so. Whoever writes such
a file holds a lock on it, which ends with the process however that ends; so what a killed process has left is told
from what another one is writing, and :func:`remove_leftovers` removes the former.
"""

from __future__ import annotations

import errno
import hashlib
import importlib
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import IO, Any, BinaryIO, Union

from .errors import Interrupted, RiemError, os_reason

fcntl: Any = None
with suppress(ImportError):  # not a POSIX system: nothing tells leftovers from what is in use, so they stay
    fcntl = importlib.import_module('fcntl')

PathLike = Union[str, 'os.PathLike[str]']
LONGEST_NAME = 200
"""Bytes of a file name that a temporary name repeats; of a longer one it has the hash. Disks allow 255 in all."""
_IN_USE = '.in-use'
"""The locked file of a temporary folder; one that is being removed needs none."""
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_TEMPORARY = re.compile(r'\..+\.[0-9a-f]{16}\.riem-tmp', re.DOTALL)


def temporary_path(target: PathLike) -> Path:
    """A new name beside ``target`` for what is to take its place, or for what is to be removed."""
    target = Path(target)
    name = target.name
    if len(os.fsencode(name)) > LONGEST_NAME:
        name = hashlib.sha256(os.fsencode(name)).hexdigest()
    return target.with_name(f'.{name}.{secrets.token_hex(8)}.riem-tmp')


@contextmanager
def whole_file(target: PathLike, *, check: Callable[[Path], None] | None = None) -> Iterator[BinaryIO]:
    """A stream of bytes that take the place of ``target`` at the end; on any error the old file stays as it was.

    Args:
        target: the file; an existing one is replaced.
        check: called with the path of what is written and flushed to the disk, before it takes its place; its error is
            the end of it.

    Raises:
        Interrupted: the file cannot be written: the disk is full, or the folder is gone or may not be written.
    """
    target = Path(target)
    with _written(target):
        stream = _fresh(target)
        try:
            with stream:
                yield stream
                stream.flush()
                os.fsync(stream.fileno())
                if check is not None:
                    check(Path(stream.name))
                os.replace(stream.name, target)
        finally:
            with suppress(OSError):
                os.unlink(stream.name)  # gone already where all went well


def write_whole(target: PathLike, data: bytes | str) -> None:
    """Write a file of these bytes, or of a text in UTF-8, and remove what killed processes have left beside it.

    Raises:
        Interrupted: see :func:`whole_file`.
    """
    remove_leftovers(Path(target).parent)
    with whole_file(target) as stream:
        stream.write(data.encode() if isinstance(data, str) else data)


@contextmanager
def scratch_folder(target: PathLike) -> Iterator[Path]:
    """A new folder beside ``target``, for what takes its place when it is complete; removed at the end.

    Raises:
        Interrupted: see :func:`whole_file`.
    """
    with _written(Path(target)):
        folder = temporary_path(target)
        folder.mkdir()
        try:
            with open(folder / _IN_USE, 'xb') as stream:
                with suppress(OSError):
                    claim(stream)
                yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def remove_leftovers(folder: PathLike) -> None:
    """Remove the temporary files of a folder that no process is writing, and such folders within it."""
    with suppress(OSError), os.scandir(os.fspath(folder)) as entries:
        for entry in entries:
            if _TEMPORARY.fullmatch(entry.name):
                _remove(entry)


def claim(stream: IO) -> bool:
    """Lock an open file until it is closed or the process ends; whether no other one has it.

    Raises:
        OSError: files cannot be locked here.
    """
    if fcntl is None:
        raise OSError('this system has no locks of files')
    try:
        fcntl.flock(stream.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def is_at(stream: IO, path: PathLike) -> bool:
    """Whether that path is still the one of an open file."""
    try:
        return os.path.samestat(os.fstat(stream.fileno()), os.stat(path, follow_symlinks=False))
    except OSError:
        return False


def _fresh(target: Path) -> BinaryIO:
    """A new temporary file, locked."""
    while True:
        stream = open(temporary_path(target), 'xb')  # noqa: SIM115
        try:
            is_mine = claim(stream)
        except OSError:
            return stream
        if is_mine and is_at(stream, stream.name):
            return stream
        stream.close()  # another process took it for a leftover in the moment before it was locked


def _remove(entry: os.DirEntry) -> None:
    if not entry.is_dir(follow_symlinks=False):
        with suppress(OSError), _claimed(entry.path):
            os.unlink(entry.path)
        return
    in_use = os.path.join(entry.path, _IN_USE)
    with suppress(OSError), _claimed(in_use) if os.path.exists(in_use) else nullcontext():
        shutil.rmtree(entry.path, ignore_errors=True)


@contextmanager
def _claimed(path: str) -> Iterator[None]:
    """Within, an existing file is locked.

    Raises:
        OSError: another process has it, or it is gone.
    """
    with open(path, 'r+b') as stream:
        if not (claim(stream) and is_at(stream, path)):
            raise OSError(f'{path} is in use')
        yield


@contextmanager
def _written(target: Path) -> Iterator[None]:
    try:
        yield
    except RiemError:
        raise
    except (OSError, RuntimeError) as error:
        cause = error if isinstance(error, OSError) else error.__context__  # torch.save has its own error
        if not isinstance(cause, OSError):
            raise
        raise Interrupted(f'{target}: the file cannot be written {because(cause)}') from error


def because(error: OSError) -> str:
    """Why something cannot be written, and what to do: the end of a sentence.

    >>> because(OSError(errno.ENOSPC, 'No space left on device'))
    '(No space left on device); make room, or choose another place'
    """
    remedy = 'make room, or choose another place' if error.errno in _NO_ROOM else 'choose another place'
    return f'({os_reason(error)}); {remedy}'
