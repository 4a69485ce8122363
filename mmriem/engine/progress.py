"""Progress of long work on a terminal, and as a few lines in a log.

The work is searched for in several passes over all layers, whose number nobody knows beforehand. So what is shown only
rises, and layers are counted within a pass, which is named.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.text import Text

__all__ = ['Course', 'Display', 'duration', 'show_progress']

FIRST_GUESS = 0.05
"""Share of the work that must be done before anything is said of how long the rest takes."""


class Course:
    """How far the work is, and how long it has taken and will take.

    Args:
        clock: seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._started = clock, clock()
        self._pass, self._layers = 0, ''
        self.share, self.name = 0.0, ''

    def advance(self, share: float, name: str) -> None:
        """The work is that far; a smaller share than before does not count."""
        self.share, self.name = max(self.share, min(share, 1.0)), name

    def layer(self, done: int, of: int, size: int) -> None:
        """So many layers of a pass are done, of so many, and take so many bytes."""
        self._pass += done == 1
        number = f'pass {self._pass}: ' if self._pass > 1 else ''
        self._layers = f'{number}{done}/{of} layers, {size / 1e3:,.0f} kB'

    @property
    def times(self) -> str:
        """The time it has taken, and about how long the rest takes where that can be told."""
        elapsed = self._clock() - self._started
        if not FIRST_GUESS <= self.share < 1:
            return duration(elapsed)
        return f'{duration(elapsed)}, about {duration(elapsed * (1 - self.share) / self.share)} left'

    @property
    def work(self) -> str:
        """What is being worked at."""
        return ', '.join(part for part in (self._layers, self.name) if part)


class Display:
    """What shows how far the work is; this one shows nothing."""

    def __call__(self, share: float, name: str) -> None:
        """The share that is done, 0 to 1, and what is being worked at."""

    def layer(self, done: int, of: int, size: int) -> None:
        """How many layers are done, of how many, and the bytes that these take."""


class _Lines(Display):
    """A line for each tenth."""

    def __init__(self, title: str, course: Course) -> None:
        self._title, self._course, self._shown = title, course, 0

    def __call__(self, share: float, name: str) -> None:
        course = self._course
        course.advance(share, name)
        if int(course.share * 10 + 1e-9) > self._shown:
            self._shown = int(course.share * 10 + 1e-9)
            line = f'{self._title}: {self._shown * 10} % ({course.times}; {course.work})'
            print(line, file=sys.stderr, flush=True)

    def layer(self, done: int, of: int, size: int) -> None:
        self._course.layer(done, of, size)


class _Bar(Display):
    """A live bar."""

    def __init__(self, bar: Progress, title: str, course: Course) -> None:
        self._bar, self._course = bar, course
        self._task = bar.add_task(title, total=1.0, course=course)

    def __call__(self, share: float, name: str) -> None:
        self._course.advance(share, name)
        self._bar.update(self._task, completed=self._course.share)

    def layer(self, done: int, of: int, size: int) -> None:
        self._course.layer(done, of, size)


class _Told(ProgressColumn):
    """What a property of the course tells, as it is: names of layers are no markup."""

    def __init__(self, name: str) -> None:
        self._name = name
        super().__init__()

    def render(self, task: Task) -> Text:
        return Text(getattr(task.fields['course'], self._name))


def duration(seconds: float) -> str:
    """A time for people.

    >>> duration(4.4), duration(60), duration(200), duration(5000)
    ('4 s', '1 min 00 s', '3 min 20 s', '1 h 23 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f'{whole} s'
    if whole < 3600:
        return f'{whole // 60} min {whole % 60:02d} s'
    return f'{whole // 3600} h {whole % 3600 // 60:02d} min'


@contextmanager
def show_progress(title: str, *, quiet: bool = False, clock: Callable[[], float] = time.monotonic) -> Iterator[Display]:
    """Something to call with how far the work is: a live bar on a terminal, else a line for each tenth, on stderr.

    Args:
        title: of the work.
        quiet: show nothing.
        clock: seconds.
    """
    if quiet:
        yield Display()
        return
    course = Course(clock)
    if not sys.stderr.isatty():
        yield _Lines(title, course)
        return
    columns = (
        TextColumn('{task.description}', markup=False),
        BarColumn(bar_width=24),
        TextColumn('{task.percentage:3.0f}%'),
        _Told('times'),
        _Told('work'),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        yield _Bar(bar, title, course)
