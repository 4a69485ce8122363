"""The files of a compression: where they are, what may be replaced, and the journal and the lock beside them."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmriem.core.atomic import remove_leftovers
from mmriem.core.errors import RiemError
from mmriem.core.execution.journal import Journal
from mmriem.core.execution.lock import locked

from .config import config_path

__all__ = ['WRITING', 'Outputs']

LONGEST_NAME = 200
"""Bytes of a file's name, of the 255 that file systems allow: those of journals and locks are longer."""
WRITING = 'outputs'
"""The piece of a journal that says that the outputs are being written."""
_IDENTITY = 'identity'
_SHA256 = 'sha256'


@dataclass(frozen=True)
class Outputs:
    """The files of a compression, side by side under one name."""

    riem: Path

    @classmethod
    def named(cls, out: str | os.PathLike | None, config: str, checkpoint: str) -> Outputs:
        """By what the user gave: a file `NAME.riem`, a folder, or nothing for `work_dirs/NAME-OF-CONFIG`."""
        path = Path('work_dirs') / config_path(config).stem if out is None else Path(out)
        if path.suffix != path.suffix.lower() == '.riem':
            raise RiemError(f'--out {out}: expected a name that ends in .riem, in small letters; rename it')
        if path.suffix != '.riem':
            path = path / f'{Path(checkpoint).stem}.riem'
        return cls(path)

    @property
    def config(self) -> Path:
        """The config that loads the file."""
        return self.riem.with_suffix('.py')

    @property
    def report(self) -> Path:
        """The report for programs."""
        return self.riem.with_suffix('.json')

    @property
    def page(self) -> Path:
        """The report for people."""
        return self.riem.with_suffix('.html')

    @property
    def journal(self) -> Journal:
        """What keeps the finished weights of a compression until its outputs are there."""
        return Journal(self.riem.with_name(f'{self.riem.name}.journal'))

    @property
    def lock(self) -> Path:
        """What a running compression holds."""
        return self.riem.with_name(f'{self.riem.name}.lock')

    @contextmanager
    def held(self) -> Iterator[None]:
        """Within, no other process writes these files; what killed ones have left of such files is removed.

        Raises:
            RiemError: another process does, the name is too long, or the folder cannot be made or written.
        """
        self._make_folder()
        with locked(self.lock, str(self.riem)):
            remove_leftovers(self.riem.parent)
            yield

    def check(self, *, force: bool, resume: bool = False) -> None:
        """See that nothing is there that may not be replaced.

        Args:
            force: whatever is there may be, the journal of an unfinished compression too.
            resume: that journal stays; so may outputs that the unfinished compression had begun to write, and outputs
                that say of what compression they are, which :meth:`finished` is asked about later.

        Raises:
            RiemError: an output or a journal exists.
        """
        if self.journal.exists() and not resume:
            if not force:
                raise RiemError(
                    f'{self.journal.folder}: expected none, found the journal of an unfinished compression with '
                    f'{len(self.journal)} finished pieces; go on with --resume, or start over with --force'
                )
            self.journal.remove()
        if not (resume and (self.journal.holds(WRITING) or _IDENTITY in self._told())):
            self.refuse_occupied(force=force)

    def refuse_occupied(self, *, force: bool) -> None:
        """See that no file is there that may not be replaced.

        Raises:
            RiemError: there is one.
        """
        for path in (self.riem, self.config, self.report, self.page):
            if path.is_dir():
                raise RiemError(f'{path}: expected the name of a file to write, found a folder')
            if os.path.lexists(path) and not force:
                raise RiemError(f'{path}: expected no file of that name, found one; pass --force to replace it')

    def refuse_config(self, config: str) -> None:
        """See that the written config takes not the place of the one that is read.

        Raises:
            RiemError: it would.
        """
        if self.config.resolve() == config_path(config).resolve():
            raise RiemError(
                f'{self.config}: expected another name than that of the config itself; choose one with --out'
            )

    def signature(self, identity: Mapping[str, Any]) -> dict[str, Any]:
        """What the report holds so that :meth:`finished` knows it again, once the `.riem` file is there."""
        return {_IDENTITY: dict(identity), _SHA256: _sha256(self.riem)}

    def finished(self, identity: Mapping[str, Any]) -> dict[str, Any] | None:
        """The report, if all files are there and of the compression of that identity; None if not."""
        report = self._told()
        wanted = json.loads(json.dumps(dict(identity)))
        if report.get(_IDENTITY) != wanted or not (self.config.is_file() and self.page.is_file()):
            return None
        return report if self.riem.is_file() and report.get(_SHA256) == _sha256(self.riem) else None

    def _told(self) -> dict[str, Any]:
        """The report that is there; nothing if there is none that can be read."""
        try:
            report = json.loads(self.report.read_text(encoding='utf-8'))
        except (OSError, ValueError, RecursionError):
            return {}
        return report if isinstance(report, dict) else {}

    def _make_folder(self) -> None:
        if (length := len(os.fsencode(self.riem.name))) > LONGEST_NAME:
            raise RiemError(
                f'{self.riem}: expected a name of at most {LONGEST_NAME} bytes, found {length}; choose one with --out'
            )
        try:
            self.riem.parent.mkdir(parents=True, exist_ok=True)
        except (OSError, ValueError) as error:  # ValueError for a name that no folder can have
            reason = getattr(error, 'strerror', None) or error
            raise RiemError(f'{self.riem.parent}: the folder cannot be made ({reason})') from error
        if not os.access(self.riem.parent, os.W_OK):
            raise RiemError(f'{self.riem.parent}: the folder cannot be written; choose another with --out')


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
