"""Independent pieces of work on several threads and processes, with progress, and the same results on all of them.

One error stops all. Finished pieces are kept in a journal, if there is one, and not done again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from .journal import Journal
from .tasks import Progress, Task, run_all
from .workers import Workers, join, share_out, split


@dataclass(frozen=True)
class Executor:
    """Who works: the threads of this process, and other processes.

    Attributes:
        threads: pieces of work at a time in this process.
        workers: the processes.
        journal: where finished pieces are kept.
    """

    threads: int = 1
    workers: Workers = field(default_factory=Workers)
    journal: Journal | None = None

    def owners(self, costs: Sequence[float]) -> list[int]:
        """The rank that does each piece of work."""
        return share_out(costs, self.workers.size)

    def is_mine(self, task: Task) -> bool:
        """Whether this process does it."""
        return task.owner == self.workers.rank

    def kept(self, key: str) -> bytes | None:
        """The piece of the journal of that key, if there is one."""
        return self.journal.get(key) if self.journal is not None and key else None

    def keep(self, key: str, piece: bytes) -> None:
        """Put a piece into the journal, if there is one."""
        if self.journal is not None and key:
            self.journal.put(key, piece)

    def run(
        self,
        tasks: Sequence[Task],
        pack: Callable[[Any], bytes],
        unpack: Callable[[bytes], Any],
        on_progress: Callable[[float, str], None] | None = None,
        on_result: Callable[[Any], None] | None = None,
    ) -> list[Any]:
        """The results of all tasks, in their order, in every process.

        Args:
            tasks: the same in every process; each does its own, but for those in the journal.
            pack: a result as bytes, for the journal and the other processes.
            unpack: its inverse.
            on_progress: called with the share that is done of the tasks of this process, and the name of one.
            on_result: called with each result of this process as it is there.
        """

        def once(task: Task, progress: Progress) -> Any:
            piece = self.kept(task.key)
            if piece is None:
                result = task.work(progress)
                if self.journal is not None and task.key:
                    self.journal.put(task.key, pack(result))
            else:
                result = unpack(piece)
            if on_result:
                on_result(result)
            return result

        mine = [task for task in tasks if self.is_mine(task)]
        work = [replace(task, work=partial(once, task)) for task in mine]
        made = run_all(work, self.threads, on_progress)
        if self.workers.size == 1:
            return made
        parts = self.workers.exchange(join(pack(result) for result in made))
        others = [iter([] if rank == self.workers.rank else split(part)) for rank, part in enumerate(parts)]
        own = iter(made)
        return [next(own) if self.is_mine(task) else unpack(next(others[task.owner])) for task in tasks]
