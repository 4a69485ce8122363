"""Finished pieces of a compression on disk, so that an interrupted one goes on where it was.

A journal is a folder: `settings.json` says of what compression, and each piece is a file of its own with the SHA-256 of
its content in front. A file that a power cut left incomplete does not match its hash and counts as absent.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..errors import Interrupted, RiemError

_SETTINGS = 'settings.json'
_SUFFIX = '.piece'
_DIGEST = hashlib.sha256().digest_size


class Journal:
    """The pieces by key; safe to use from several threads and processes.

    Args:
        folder: where it is; made by :meth:`begin`.
    """

    def __init__(self, folder: str | os.PathLike) -> None:
        self.folder = Path(folder)

    def exists(self) -> bool:
        """Whether a compression has begun here and not ended."""
        return self.folder.exists()

    def begin(self, settings: Mapping[str, Any]) -> None:
        """Start a journal of the compression of these settings (JSON-able), or go on with the one that is there.

        Raises:
            RiemError: the one that is there is of another compression, or the folder cannot be written.
        """
        wanted = json.loads(json.dumps(settings))
        path = self.folder / _SETTINGS
        try:
            found = json.loads(path.read_text(encoding='utf-8')) if path.exists() else None
        except (OSError, ValueError) as error:
            raise RiemError(f'{path}: expected the settings of a journal, found none; remove {self.folder}') from error
        if found is not None and found != wanted:
            key = next(key for key in sorted({*found, *wanted}) if found.get(key) != wanted.get(key))
            raise RiemError(
                f'{self.folder}: expected the journal of this compression, found that of another one ({key}: '
                f'{found.get(key)}, here {wanted.get(key)}); go on with the same settings, or start over with --force'
            )
        if found is None:
            if len(self):
                raise RiemError(f'{path}: expected the settings of a journal, found none; remove {self.folder}')
            try:
                self.folder.mkdir(exist_ok=True)
            except OSError as error:
                raise Interrupted(f'{self.folder}: the journal cannot be written ({error.strerror})') from error
            self._write(path, [json.dumps(wanted, indent=1).encode()])

    def get(self, key: str) -> bytes | None:
        """The piece of that key; None where there is none that is whole."""
        try:
            with open(self._path(key), 'rb') as file:
                digest, piece = file.read(_DIGEST), file.read()
        except FileNotFoundError:
            return None
        return piece if hashlib.sha256(piece).digest() == digest else None

    def put(self, key: str, piece: bytes) -> None:
        """Keep a piece; when this returns it survives the process, and the machine if its disk does.

        Raises:
            Interrupted: the disk is full, or the folder is gone.
        """
        self._write(self._path(key), [hashlib.sha256(piece).digest(), piece])

    def __len__(self) -> int:
        return sum(1 for path in self.folder.glob(f'*{_SUFFIX}')) if self.folder.is_dir() else 0

    def remove(self) -> None:
        """Remove the folder and everything in it; in the middle of that it has another name already."""
        leaving = self.folder.with_name(f'.{self.folder.name}.{secrets.token_hex(4)}.tmp')
        with suppress(FileNotFoundError):
            os.replace(self.folder, leaving)
        shutil.rmtree(leaving, ignore_errors=True)

    def _path(self, key: str) -> Path:
        return self.folder / f'{hashlib.sha256(key.encode()).hexdigest()[:32]}{_SUFFIX}'

    def _write(self, path: Path, parts: Sequence[bytes]) -> None:
        temporary = path.with_name(f'.{secrets.token_hex(8)}.tmp')
        try:
            with open(temporary, 'wb') as file:
                file.writelines(parts)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except OSError as error:
            raise Interrupted(
                f'{self.folder}: the journal cannot be written ({error.strerror}); make room, and go on with --resume'
            ) from error
        finally:
            with suppress(OSError):
                temporary.unlink()  # gone already where all went well
