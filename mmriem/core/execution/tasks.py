"""Pieces of work, and threads that share them."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from ..errors import RiemError

Progress = Callable[[float], None]
"""Called with the share of the work that is done, 0 to 1."""
S = TypeVar('S')
T = TypeVar('T')


@dataclass(frozen=True)
class Task:
    """A piece of work: called with a callback for the share of it that is done.

    Attributes:
        name: for progress.
        cost: in any unit.
        work: what is to be done.
        owner: rank of the process that does it.
        key: of its result in a journal; without one it is not kept.
    """

    name: str
    cost: float
    work: Callable[[Progress], Any]
    owner: int = 0
    key: str = ''


def in_order(work: Callable[[S], T], items: Iterable[S], threads: int) -> Iterator[T]:
    """The results of ``work`` on each item, in their order, made by so many threads, a few ahead at a time.

    >>> list(in_order(abs, [-1, 2, -3], 2))
    [1, 2, 3]
    """
    if threads <= 1:
        yield from map(work, items)
        return
    with ThreadPoolExecutor(threads) as pool:
        ahead: deque[Future[T]] = deque()
        try:
            for item in items:
                ahead.append(pool.submit(work, item))
                if len(ahead) > 2 * threads:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def costly_first(work: Callable[[S], T], items: Sequence[S], costs: Sequence[float], threads: int) -> Iterator[T]:
    """The results of ``work`` on each item, in their order, made by so many threads, the costly ones first.

    Of several errors the one of the first item is raised.

    >>> list(costly_first(abs, [-1, 2, -3], [1, 1, 5], 2))
    [1, 2, 3]
    """
    if min(threads, len(items)) <= 1:
        yield from map(work, items)
        return
    with ThreadPoolExecutor(threads) as pool:
        started = {at: pool.submit(work, items[at]) for at in sorted(range(len(items)), key=lambda at: -costs[at])}
        try:
            for at in range(len(items)):
                yield started[at].result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


@contextmanager
def one_thread() -> Iterator[None]:
    """Within, torch computes with one thread, so that sums do not depend on how many there are."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


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
