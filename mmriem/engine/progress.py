"""Progress of long work on a terminal, and as a few lines in a log."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

__all__ = ['Display', 'show_progress']


class Display:
    """What shows how far the work is; this one shows nothing."""

    def __call__(self, share: float, name: str) -> None:
        """The share that is done, 0 to 1, and what is being worked at."""

    def layer(self, done: int, of: int, size: int) -> None:
        """How many layers are done, and the bytes that these take."""


class _Lines(Display):
    """A line for each tenth."""

    def __init__(self, title: str) -> None:
        self._title, self._shown, self._layers = title, 0, ''

    def __call__(self, share: float, name: str) -> None:
        if int(share * 10 + 1e-9) > self._shown:
            self._shown = int(share * 10 + 1e-9)
            print(f'{self._title}: {self._shown * 10} % ({self._layers}{name})', file=sys.stderr, flush=True)

    def layer(self, done: int, of: int, size: int) -> None:
        self._layers = f'{_layers(done, of, size)}, '


class _Bar(Display):
    """A live bar."""

    def __init__(self, bar: Progress, title: str) -> None:
        self._bar = bar
        self._task = bar.add_task(title, total=1.0, name='', layers='')

    def __call__(self, share: float, name: str) -> None:
        self._bar.update(self._task, completed=share, name=name)

    def layer(self, done: int, of: int, size: int) -> None:
        self._bar.update(self._task, layers=_layers(done, of, size))


def _layers(done: int, of: int, size: int) -> str:
    return f'{done}/{of} layers, {size / 1e3:,.0f} kB'


@contextmanager
def show_progress(title: str, *, quiet: bool = False) -> Iterator[Display]:
    """Something to call with how far the work is: a live bar on a terminal, else a line for each tenth, on stderr.

    Args:
        title: of the work.
        quiet: show nothing.
    """
    if quiet:
        yield Display()
        return
    if not sys.stderr.isatty():
        yield _Lines(title)
        return
    columns = (
        TextColumn('{task.description}'),
        BarColumn(bar_width=24),
        TextColumn('{task.percentage:3.0f}%'),
        TextColumn('{task.fields[layers]}'),
        TimeElapsedColumn(),
        TextColumn('left'),
        TimeRemainingColumn(),
        TextColumn('{task.fields[name]}'),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        yield _Bar(bar, title)
