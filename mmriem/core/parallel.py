"""Independent pieces of work on several threads and processes, with progress, and the same results on all of them.

One error stops all. Finished pieces are kept in a journal, if there is one, and not done again.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch

from .errors import RiemError
from .journal import Journal
from .representation import Progress
from .workers import Workers, join, split

T = TypeVar('T')


@dataclass(frozen=True)
class Task:
    """A piece of work: called with a callback for the share of it that is done.

    Attributes:
        name: for progress.
        cost: in any unit.
        work: what is to be done.
        owner: rank of the process that does it.
        key: of its result in a journal.
    """

    name: str
    cost: float
    work: Callable[[Progress], Any]
    owner: int = 0
    key: str = ''


@dataclass(frozen=True)
class Crew:
    """Who works: the threads of this process, and other processes.

    Attributes:
        threads: pieces of work at a time in this process.
        workers: the processes.
        journal: where finished pieces are kept.
    """

    threads: int = 1
    workers: Workers = field(default_factory=Workers)
    journal: Journal | None = None

    def run(
        self,
        tasks: Sequence[Task],
        pack: Callable[[Any], bytes],
        unpack: Callable[[int, bytes], Any],
        on_progress: Callable[[float, str], None] | None = None,
    ) -> list[Any]:
        """The results of all tasks, in their order, in every process.

        Args:
            tasks: the same in every process; each does its own.
            pack: a result as bytes, for the journal and the other processes.
            unpack: the result of the task of that number from these bytes.
            on_progress: called with the share that is done of the tasks of this process, and the name of one.
        """

        def done_before(number: int, progress: Progress) -> Any:
            piece = self.journal.get(tasks[number].key)
            if piece is not None:
                return unpack(number, piece)
            result = tasks[number].work(progress)
            self.journal.put(tasks[number].key, pack(result))
            return result

        def own(rank: int) -> list[int]:
            return [number for number, task in enumerate(tasks) if task.owner == rank]

        mine = [tasks[number] for number in own(self.workers.rank)]
        if self.journal is not None:
            mine = [
                replace(task, work=lambda progress, number=number: done_before(number, progress))
                for number, task in zip(own(self.workers.rank), mine)
            ]
        made = run_all(mine, self.threads, on_progress)
        results = dict(zip(own(self.workers.rank), made))
        if self.workers.size > 1:
            parts = self.workers.exchange(join([pack(result) for result in made]))
            for rank, data in enumerate(parts):
                if rank != self.workers.rank:
                    results.update((number, unpack(number, part)) for number, part in zip(own(rank), split(data)))
        return [results[number] for number in range(len(tasks))]


def run_all(tasks: Sequence[Task], threads: int, on_progress: Callable[[float, str], None] | None = None) -> list[Any]:
    """The results in the order of the tasks; the costly ones start first.

    Each thread computes with one thread of torch, so that sums do not depend on how many there are.
    """
    shares = [0.0] * len(tasks)
    total = sum(task.cost for task in tasks) or 1.0
    stop, lock = threading.Event(), threading.Lock()

    def advance(number: int, share: float) -> None:
        if stop.is_set():
            raise RiemError('stopped')
        with lock:
            shares[number] = share
            if on_progress:
                done = sum(part * task.cost for part, task in zip(shares, tasks)) / total
                on_progress(done, tasks[number].name)

    def run(number: int) -> Any:
        advance(number, 0.0)
        result = tasks[number].work(lambda share: advance(number, 0.99 * share))
        advance(number, 1.0)
        return result

    ordered = sorted(range(len(tasks)), key=lambda number: -tasks[number].cost)
    before = torch.get_num_threads()
    with ThreadPoolExecutor(max(1, threads), initializer=torch.set_num_threads, initargs=(1,)) as pool:
        futures = {number: pool.submit(run, number) for number in ordered}
        try:
            done, _ = wait(futures.values(), return_when=FIRST_EXCEPTION)
            for future in done:
                future.result()
        except BaseException:
            stop.set()
            pool.shutdown(cancel_futures=True)
            raise
        finally:
            torch.set_num_threads(before)
    return [futures[number].result() for number in range(len(tasks))]
