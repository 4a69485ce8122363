"""Work on several threads: results in order, progress that only grows, one error that stops all."""

import threading

import pytest
import torch

from mmriem.core.errors import RiemError
from mmriem.core.execution.tasks import Task, in_order, run_all


@pytest.fixture
def three_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def workers():
    return [thread for thread in threading.enumerate() if 'ThreadPoolExecutor' in thread.name]


def tasks_of(costs, work=lambda number, progress: number):
    return [
        Task(f'task {number}', cost, lambda progress, number=number: work(number, progress))
        for number, cost in enumerate(costs)
    ]


@pytest.mark.parametrize('threads', [0, 1, 2, 8])
def test_results_come_in_the_order_of_the_tasks(threads):
    assert run_all(tasks_of([1, 5, 2, 9, 1]), threads) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize('threads', [1, 2])
def test_no_tasks_and_tasks_that_cost_nothing(threads):
    seen = []
    assert run_all([], threads, lambda *args: seen.append(args)) == [] and not seen
    assert run_all(tasks_of([0, 0]), threads, lambda *args: seen.append(args)) == [0, 1]


def test_the_costly_ones_start_first_and_equal_ones_in_order():
    started = []
    run_all(tasks_of([1, 5, 2, 5], lambda number, progress: started.append(number)), 1)
    assert started == [1, 3, 2, 0]


def test_tasks_run_at_the_same_time():
    """Each waits for the other."""
    barrier = threading.Barrier(2, timeout=60)
    assert sorted(run_all(tasks_of([1, 1], lambda number, progress: barrier.wait()), 2)) == [0, 1]


def test_progress_is_the_share_of_the_cost():
    seen = []

    def work(number, progress):
        progress(0.5)
        progress(1.0)

    run_all(tasks_of([1, 3], work), 1, lambda *args: seen.append(args))
    assert [name for _, name in seen] == ['task 1'] * 4 + ['task 0'] * 4
    expected = [0, 0.99 * 0.375, 0.99 * 0.75, 0.75, 0.75, 0.75 + 0.99 * 0.125, 0.75 + 0.99 * 0.25, 1]
    assert [share for share, _ in seen] == pytest.approx(expected)


def test_progress_of_several_threads_never_falls():
    seen = []

    def work(number, progress):
        for turn in range(20):
            progress(turn / 20)

    run_all(tasks_of([1, 2, 3, 4, 5, 6], work), 3, lambda *args: seen.append(args))
    shares = [share for share, _ in seen]
    assert shares == sorted(shares) and shares[0] == 0 and shares[-1] == 1 and len(shares) == 6 * 22


def test_each_thread_computes_with_one_thread_of_torch(three_threads):
    found = run_all(tasks_of([1] * 4, lambda number, progress: torch.get_num_threads()), 2)
    assert found == [1] * 4 and torch.get_num_threads() == 3


@pytest.mark.parametrize('error', [RiemError, ValueError, KeyboardInterrupt])
@pytest.mark.parametrize('threads', [1, 2])
def test_the_first_error_comes_through_and_nothing_else_starts(error, threads, three_threads):
    started = []

    def work(number, progress):
        started.append(number)
        if number == 0:
            raise error('broken')
        released.wait(60)

    released = threading.Event()
    waiting = threading.Timer(0.5, released.set)
    waiting.start()
    with pytest.raises(error, match='broken'):
        run_all(tasks_of([9, 8, *[1] * 20], work), threads)
    waiting.cancel()
    assert len(started) <= threads + 1 and not workers() and torch.get_num_threads() == 3


def test_work_that_tells_its_progress_stops_after_an_error():
    """The other thread would go on for ever."""

    def work(number, progress):
        if number == 0:
            raise ValueError('broken')
        while True:
            progress(0.5)

    with pytest.raises(ValueError, match='broken'):
        run_all(tasks_of([2, 1], work), 2)
    assert not workers()


def test_an_error_of_the_callback_stops_all():
    def interrupt(share, name):
        if share > 0.2:
            raise KeyboardInterrupt('enough')

    def work(number, progress):
        while True:
            progress(0.9)

    with pytest.raises(KeyboardInterrupt, match='enough'):
        run_all(tasks_of([1, 1, 1], work), 2, interrupt)
    assert not workers()


@pytest.mark.parametrize('threads', [1, 3])
def test_results_come_in_the_order_of_the_items(threads):
    assert list(in_order(str, range(20), threads)) == [str(number) for number in range(20)]


@pytest.mark.parametrize('threads', [1, 3])
def test_the_first_error_ends_them(threads):
    found = in_order(lambda number: 1 // (5 - number), range(1000), threads)
    with pytest.raises(ZeroDivisionError):
        list(found)
