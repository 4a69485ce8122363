"""Independent pieces of work on several threads, with progress, one error that stops all, and the same results."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from .errors import RiemError
from .representation import Progress

T = TypeVar('T')


@dataclass(frozen=True)
class Task:
    """A piece of work: called with a callback for the share of it that is done."""

    name: str
    cost: float
    work: Callable[[Progress], Any]


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
