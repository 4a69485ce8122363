"""One process at a time: a lock file that says which one has it, and that outlives no process for long.

The system's own lock on the file decides, which ends with the process, however that ends and on whatever machine; the
content only tells who it is. Where a disk has no such locks, the content decides: the lock of a process of this machine
that is gone is stale, that of another machine counts until the file is removed.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from ..atomic import because, claim, is_at
from ..errors import Interrupted, RiemError

MAX_CONTENT = 1 << 16
"""Bytes of a lock file that are read."""


@contextmanager
def locked(path: str | os.PathLike, what: str) -> Iterator[None]:
    """Hold the lock file of that path, which is removed at the end.

    Args:
        path: in a folder that exists.
        what: what is locked, for the error.

    Raises:
        RiemError: another process holds it.
        Interrupted: it cannot be written.
    """
    path = Path(path)
    try:
        stream = _taken(path, what)
    except OSError as error:
        raise Interrupted(f'{path}: the lock cannot be written {because(error)}') from error
    with stream:
        try:
            yield
        finally:
            if is_at(stream, path):
                with suppress(OSError):
                    path.unlink()


def _taken(path: Path, what: str) -> BinaryIO:
    while True:
        stream = open(path, 'a+b')  # noqa: SIM115
        try:
            if _is_held(stream, what, path):
                raise RiemError(_refusal(stream, what, path))
            if is_at(stream, path):  # not removed by the one that had it
                _sign(stream)
                return stream
            stream.close()
        except BaseException:
            stream.close()
            raise


def _is_held(stream: BinaryIO, what: str, path: Path) -> bool:
    try:
        return not claim(stream)
    except OSError:
        return _is_alive(_content(stream))


def _sign(stream: BinaryIO) -> None:
    me = {'process': os.getpid(), 'host': socket.gethostname(), 'started': _started(os.getpid())}
    stream.truncate(0)
    try:
        stream.write(json.dumps({**me, 'since': time.strftime('%Y-%m-%d %H:%M:%S')}).encode())
        stream.flush()
    except OSError:
        os.unlink(stream.name)
        raise


def _content(stream: BinaryIO) -> dict[str, Any]:
    """What a lock file says; nothing where it is damaged, or not yet written."""
    stream.seek(0)
    with suppress(ValueError, RecursionError):
        content = json.loads(stream.read(MAX_CONTENT))
        if isinstance(content, dict):
            return content
    return {}


def _is_alive(content: dict[str, Any]) -> bool:
    """Whether the process of a lock may be running: of another machine that is not known."""
    process, started = content.get('process'), content.get('started')
    if not isinstance(process, int) or process < 1:
        return False
    if content.get('host') != socket.gethostname():
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass
    return started is None or started == _started(process)


def _started(process: int) -> str | None:
    """When a process has started, in units of the system: numbers of processes are used again. None if not known."""
    try:
        told = Path(f'/proc/{process}/stat').read_text(encoding='ascii', errors='replace')
    except OSError:
        return None
    return told.rpartition(')')[2].split()[19]


def _refusal(stream: BinaryIO, what: str, path: Path) -> str:
    its = _content(stream)
    who = f'process {its.get("process", "unknown")} on {its.get("host", "an unknown host")}'
    return (
        f'{what}: expected no other run that writes it, found {who} (since {its.get("since", "just now")}); wait until '
        f'it ends, or write elsewhere; if it is gone, remove {path}'
    )
