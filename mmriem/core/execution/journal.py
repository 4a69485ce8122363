"""Finished pieces of a compression on disk, so that an interrupted one goes on where it was.

A journal is a folder: `settings.json` has the identity of the compression, and each piece is a file of its own with a
SHA-256 in front: of its content, its key and the identity. A file that is cut off, damaged, that has the name of
another one or is of another compression does not match and counts as absent.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..atomic import remove_leftovers, temporary_path, whole_file
from ..errors import Interrupted, RiemError, brief

_SETTINGS = 'settings.json'
_SUFFIX = '.piece'
_DIGEST = hashlib.sha256().digest_size
MAX_SETTINGS = 1 << 24
"""Bytes of `settings.json` that are read."""


class Journal:
    """The pieces by key; safe to use from several threads and processes.

    Args:
        folder: where it is; made by :meth:`begin`.
    """

    def __init__(self, folder: str | os.PathLike) -> None:
        self.folder = Path(folder)
        self._seal = b''

    def exists(self) -> bool:
        """Whether a compression has begun here and not ended."""
        return self.folder.exists()

    def begin(self, identity: Mapping[str, Any]) -> None:
        """Start a journal of the compression of that identity (JSON-able), or go on with the one that is there.

        What killed processes were writing in it is removed.

        Raises:
            RiemError: the one that is there is of another compression, or does not say of which.
            Interrupted: the folder cannot be written.
        """
        wanted = json.loads(json.dumps(identity))
        text = json.dumps(wanted, indent=1, sort_keys=True).encode()
        found = self._found()
        if found is not None and found != wanted:
            key = next(key for key in sorted({*found, *wanted}) if found.get(key) != wanted.get(key))
            raise RiemError(
                f'{self.folder}: expected the journal of this compression, found that of another one ({key}: '
                f'{_told(found.get(key))}, here {_told(wanted.get(key))}); go on with the same settings, or start over '
                'with --force'
            )
        if found is None:
            if len(self):
                raise self._unknown('none')
            try:
                self.folder.mkdir(exist_ok=True)
            except OSError as error:
                raise Interrupted(f'{self.folder}: the journal cannot be written ({error.strerror})') from error
            self._write(self.folder / _SETTINGS, [text])
        remove_leftovers(self.folder)
        self._seal = hashlib.sha256(text).digest()

    def holds(self, key: str) -> bool:
        """Whether there is a piece of that key, whole or not."""
        return self._path(key).exists()

    def get(self, key: str) -> bytes | None:
        """The piece of that key; None where there is none that is whole."""
        try:
            with open(self._path(key), 'rb') as file:
                digest, piece = file.read(_DIGEST), file.read()
        except OSError:
            return None
        return piece if self._digest(key, piece) == digest else None

    def put(self, key: str, piece: bytes) -> None:
        """Keep a piece; when this returns it survives the process, and the machine if its disk does.

        One that is there already, as some of those are that a killed process had made together, is not written again.

        Raises:
            Interrupted: the disk is full, or the folder is gone.
        """
        if self.get(key) != piece:
            self._write(self._path(key), [self._digest(key, piece), piece])

    def __len__(self) -> int:
        return sum(1 for path in self.folder.glob(f'*{_SUFFIX}')) if self.folder.is_dir() else 0

    def remove(self) -> None:
        """Remove the folder and everything in it; in the middle of that it has another name already."""
        leaving = temporary_path(self.folder)
        with suppress(FileNotFoundError):
            os.replace(self.folder, leaving)
        shutil.rmtree(leaving, ignore_errors=True)

    def _found(self) -> dict[str, Any] | None:
        """The identity that is there; None where there is none.

        Raises:
            RiemError: it is damaged.
        """
        path = self.folder / _SETTINGS
        try:
            with open(path, 'rb') as file:
                found = json.loads(file.read(MAX_SETTINGS).decode())
        except FileNotFoundError:
            return None
        except NotADirectoryError as error:
            raise RiemError(f'{self.folder}: expected the folder of a journal, found a file; remove it') from error
        except (OSError, ValueError, RecursionError) as error:
            raise self._unknown(f'a damaged file ({type(error).__name__})') from error
        if not isinstance(found, dict):
            raise self._unknown(f'a {type(found).__name__}')
        return found

    def _unknown(self, found: str) -> RiemError:
        return RiemError(
            f'{self.folder / _SETTINGS}: expected the settings of a journal, found {found}; start over with --force, '
            f'or remove {self.folder}'
        )

    def _digest(self, key: str, piece: bytes) -> bytes:
        sealed = hashlib.sha256(self._seal + hashlib.sha256(key.encode()).digest())
        sealed.update(piece)
        return sealed.digest()

    def _path(self, key: str) -> Path:
        return self.folder / f'{hashlib.sha256(key.encode()).hexdigest()[:32]}{_SUFFIX}'

    def _write(self, path: Path, parts: Sequence[bytes]) -> None:
        try:
            with whole_file(path) as stream:
                stream.writelines(parts)
        except Interrupted as error:
            raise Interrupted(f'{error}; what is finished is kept, go on with --resume') from error


def _told(value: Any) -> str:
    return value if isinstance(value, str) and len(value) <= 80 else brief(value)
