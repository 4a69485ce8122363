"""Write a ``.riem`` file: verified, then renamed, so that a reader sees the old file or the whole new one."""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path

from ..errors import RiemError, os_reason
from .archive import Archive, PathLike
from .reading import Shapes, from_bytes


def write(path: PathLike, archive: Archive, *, force: bool = False) -> int:
    """Write an archive, atomically: a reader sees the old file or the whole new one.

    The bytes go to a temporary file in the same folder, are flushed to the disk, read back, decoded and
    verified, and then renamed. On any failure the temporary file is removed and an old file stays as it was.

    Args:
        path: the file to write.
        archive: what to write.
        force: replace an existing file.

    Returns:
        Bytes on disk.

    Raises:
        RiemError: the file exists and ``force`` is not given, the folder cannot be written, or the written
            file does not verify.
    """
    path = Path(path)
    _refuse_occupied(path, force)
    data = archive.to_bytes()
    temporary = path.with_name(f'.{secrets.token_hex(4)}.riem.tmp')
    try:
        _write_through(temporary, data)
        _verify(temporary, data, str(path), archive.shapes)
        _refuse_occupied(path, force)
        os.replace(temporary, path)
    except OSError as error:
        raise RiemError(f'{path}: expected a folder that can be written, found: {os_reason(error)}') from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()  # gone already where all went well
    return len(data)


def _refuse_occupied(path: Path, force: bool) -> None:
    if path.is_dir():
        raise RiemError(f'{path}: expected the name of a file to write, found a folder')
    if os.path.lexists(path) and not force:
        raise RiemError(f'{path}: expected no file of that name, found one; force=True replaces it')


def _write_through(path: Path, data: bytes) -> None:
    with open(path, 'xb') as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())


def _verify(path: Path, data: bytes, origin: str, shapes: Shapes) -> None:
    if path.read_bytes() != data:
        raise RiemError(f'{origin}: expected to read back what was written, found other bytes; check the disk')
    from_bytes(data, origin, shapes).verify()
