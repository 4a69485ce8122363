"""Write a ``.riem`` file: verified, then renamed, so that a reader sees the old file or the whole new one."""

from __future__ import annotations

import os
from pathlib import Path

from ..atomic import remove_leftovers, whole_file
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
    _require_folder(path)
    data = archive.to_bytes()

    def check(temporary: Path) -> None:
        _verify(temporary, data, str(path), archive.shapes)
        _refuse_occupied(path, force)

    remove_leftovers(path.parent)
    with whole_file(path, check=check) as stream:
        stream.write(data)
    return len(data)


def _refuse_occupied(path: Path, force: bool) -> None:
    if path.is_dir():
        raise RiemError(f'{path}: expected the name of a file to write, found a folder')
    if os.path.lexists(path) and not force:
        raise RiemError(f'{path}: expected no file of that name, found one; force=True replaces it')


def _require_folder(path: Path) -> None:
    try:
        os.scandir(path.parent).close()
    except OSError as error:
        raise RiemError(f'{path}: expected a folder that can be written, found: {os_reason(error)}') from error


def _verify(path: Path, data: bytes, origin: str, shapes: Shapes) -> None:
    if path.read_bytes() != data:
        raise RiemError(f'{origin}: expected to read back what was written, found other bytes; check the disk')
    from_bytes(data, origin, shapes).verify()
