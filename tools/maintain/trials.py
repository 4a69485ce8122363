"""Trials of hostile input, in processes of their own: one that crashes or hangs is counted, and the rest goes on.

Imported by the campaigns of this folder; it runs nothing itself.
"""

from __future__ import annotations

import multiprocessing
import resource
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import Any

FINDING = 'finding: '
"""What the outcome of a trial begins with where it is not as it should be."""
SECONDS = 2.0
"""Of computing that a trial may take."""
HANGS = 5
"""A trial that takes so many times as long is killed."""
SILENCE = 300.0
"""Seconds without a word after which a process is killed that does not compute either."""
MEMORY = 1 << 28
"""Bytes that a trial may take beside what the process has anyway."""
ADDRESSES = 1 << 32
"""Bytes of addresses that all trials of a process may reserve, so that none takes the memory of the machine."""


@dataclass(frozen=True)
class Result:
    """Of one trial.

    Attributes:
        number: of the trial.
        way: what was tried.
        outcome: in a word or two; begins with `FINDING` where it is not as it should be.
        detail: the message, or what was found.
    """

    number: int
    way: str
    outcome: str
    detail: str = ''

    @property
    def is_finding(self) -> bool:
        """Whether it is not as it should be."""
        return self.outcome.startswith(FINDING)


@dataclass(frozen=True)
class Trial:
    """What is done for each number.

    Attributes:
        make: the hostile thing, for which there is no limit but that of a hang.
        judge: what becomes of it, by the number and the thing. What it raises, more than `SECONDS` of computing or
            `MEMORY`, a crash and a hang are findings.
    """

    make: Callable[[int], Any]
    judge: Callable[[int, Any], Result]


@dataclass
class Tally:
    """What was tried, and what was found to be wrong."""

    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    findings: list[Result] = field(default_factory=list)

    def add(self, result: Result) -> None:
        """Count one, and say so at once where it is a finding."""
        self.counts[result.way, result.outcome] += 1
        if result.is_finding:
            self.findings.append(result)
            print(f'{result.number} {result.way}: {result.outcome}: {result.detail}', file=sys.stderr, flush=True)

    @property
    def total(self) -> int:
        """How many have run."""
        return sum(self.counts.values())

    def table(self) -> str:
        """In Markdown: ways down, outcomes across."""
        outcomes = sorted({outcome for _, outcome in self.counts})
        ways = sorted({way for way, _ in self.counts})
        rows = [[way, *(self.counts[way, outcome] for outcome in outcomes)] for way in ways]
        rows.append(['all', *(sum(self.counts[way, outcome] for way in ways) for outcome in outcomes)])
        lines = [['what', *outcomes], ['---'] * (len(outcomes) + 1), *rows]
        return '\n'.join(
            f'| {" | ".join(f"{cell:,}" if isinstance(cell, int) else cell for cell in line)} |' for line in lines
        )


def run_trials(trial: Trial, numbers: Sequence[int], processes: int) -> Tally:
    """Run the trials of these numbers in forks of this process; SIGTERM ends them early, and what has run is told.

    Args:
        trial: what is done for each.
        numbers: of the trials.
        processes: at a time, each with a share of the numbers.
    """
    tally = Tally()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    workers = [_Worker(trial, numbers[start::processes]) for start in range(processes)]
    open_ones = {worker.connection: worker for worker in workers if worker.left}
    with suppress(KeyboardInterrupt):
        while open_ones:
            heard = wait(list(open_ones), SILENCE)
            for connection in heard or list(open_ones):
                worker = open_ones.pop(connection)
                for result in worker.results(is_silent=not heard):
                    tally.add(result)
                if worker.left:
                    open_ones[worker.connection] = worker
    for worker in workers:
        if worker.left:
            worker.process.kill()
        worker.process.join()
    return tally


class _Worker:
    """A process with the numbers that are left to it; another process where it has ended."""

    def __init__(self, trial: Trial, numbers: Sequence[int]) -> None:
        self.trial, self.left = trial, list(numbers)
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context('fork')
        self.connection, theirs = context.Pipe(duplex=False)
        self.process = context.Process(target=_work, args=(self.trial, self.left, theirs), daemon=True)
        self.process.start()
        theirs.close()

    def results(self, is_silent: bool) -> Iterator[Result]:
        """What it has said, or that it has ended before its time."""
        if is_silent:
            self.process.kill()
        try:
            result = self.connection.recv()
        except EOFError:
            self.process.join()
            status = self.process.exitcode
            said = signal.Signals(-status).name if status and status < 0 else f'exit status {status}'
            hung = is_silent or said == 'SIGPROF'
            result = Result(self.left[0], 'the process ended', f'{FINDING}{"hang" if hung else "crash"}', said)
        self.left.pop(0)
        yield result
        if result.is_finding and self.left:  # it may have kept the memory
            self.process.kill()
            self.process.join()
            self._start()


def _work(trial: Trial, numbers: Sequence[int], connection: Connection) -> None:
    for number_of_signal in (signal.SIGPROF, signal.SIGTERM):
        signal.signal(number_of_signal, signal.SIG_DFL)
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (_addresses() + ADDRESSES, hard))
    for number in numbers:
        signal.setitimer(signal.ITIMER_PROF, HANGS * SECONDS)
        connection.send(_bounded(trial, number))
    signal.setitimer(signal.ITIMER_PROF, 0)


def _bounded(trial: Trial, number: int) -> Result:
    made = trial.make(number)
    peak, start = _peak(), time.process_time()
    try:
        result = trial.judge(number, made)
    except Exception:
        result = Result(number, 'the trial itself', f'{FINDING}another exception', traceback.format_exc()[-1500:])
    seconds, more = time.process_time() - start, _peak() - peak
    if not result.is_finding and seconds > SECONDS:
        return Result(number, result.way, f'{FINDING}over {SECONDS:g} s', f'{seconds:.1f} s; {result.detail}')
    if not result.is_finding and more > MEMORY:
        return Result(number, result.way, f'{FINDING}over {MEMORY >> 20} MiB', f'{more >> 20} MiB; {result.detail}')
    return result


def _peak() -> int:
    """Most bytes that this process has had in memory."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def _addresses() -> int:
    with open('/proc/self/statm') as file:
        return int(file.read().split()[0]) * resource.getpagesize()
