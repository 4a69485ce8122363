"""Progress of long work on a terminal, and as a few lines in a log."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from mmriem.core.compress import OnProgress

__all__ = ['show_progress']


@contextmanager
def show_progress(title: str) -> Iterator[OnProgress]:
    """A callback that shows how far the work is: a live bar on a terminal, else a line for each tenth, on stderr."""
    if not sys.stderr.isatty():
        yield _lines(title)
        return
    columns = (
        TextColumn('{task.description}'),
        BarColumn(),
        TextColumn('{task.percentage:3.0f}%'),
        TimeElapsedColumn(),
        TextColumn('left'),
        TimeRemainingColumn(),
        TextColumn('{task.fields[name]}'),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(title, total=1.0, name='')
        yield lambda share, name: bar.update(task, completed=share, name=name)


def _lines(title: str) -> OnProgress:
    shown = 0

    def show(share: float, name: str) -> None:
        nonlocal shown
        if int(share * 10 + 1e-9) > shown:
            shown = int(share * 10 + 1e-9)
            print(f'{title}: {shown * 10} % ({name})', file=sys.stderr, flush=True)

    return show
