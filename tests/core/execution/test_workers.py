"""Several processes, here as threads that talk through a list: the same bytes, the work shared out."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from mmriem.core.errors import RiemError
from mmriem.core.execution.executor import Executor
from mmriem.core.execution.journal import Journal
from mmriem.core.execution.workers import Workers, join, share_out, split
from mmriem.core.file.manifest import Source
from mmriem.core.images.probe import ImageProbe
from mmriem.core.images.procedural import procedural_images
from mmriem.core.images.synthesis import synthesise
from mmriem.core.pipeline.compress import compress
from mmriem.core.pipeline.job import predicted_seconds
from mmriem.core.pipeline.settings import Settings
from mmriem.core.representations.registry import get_representation
from mmriem.core.weights.views import WeightView


class Threads(Workers):
    """One of several workers; all share the barrier, the table and the queues."""

    def __init__(self, rank, size, barrier, table, queues):
        self.rank, self.size, self.barrier, self.table, self.queues = rank, size, barrier, table, queues

    def post(self, data, to):
        self.queues[self.rank, to].put(data)

    def receive(self, sender):
        return self.queues[sender, self.rank].get(timeout=60)

    def exchange(self, data):
        assert isinstance(data, bytes)
        self.table[self.rank] = data
        self.barrier.wait()
        found = list(self.table)
        self.barrier.wait()
        return found

    def gather(self, data, to):
        found = self.exchange(data)
        return found if self.rank == to else []


def together(size, work):
    """What `work` returns in each of the workers; an error of one ends all."""
    barrier, table = threading.Barrier(size, timeout=60), [b''] * size
    queues = {(sender, to): SimpleQueue() for sender in range(size) for to in range(size)}

    def run(rank):
        try:
            return work(Threads(rank, size, barrier, table, queues))
        except BaseException:
            barrier.abort()
            raise

    with ThreadPoolExecutor(size) as pool:
        return [future.result() for future in [pool.submit(run, rank) for rank in range(size)]]


class Net(nn.Module):
    """A convolution, a norm, a weight used twice, one that is never reached."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 24, 3)
        self.norm = nn.BatchNorm2d(24)
        self.conv = nn.Conv2d(24, 32, 3)
        self.shared = nn.Linear(32, 32)
        self.unreached = nn.Linear(40, 40)
        self.head = nn.Linear(32, 20)

    def forward(self, x):
        x = self.conv(self.norm(self.stem(x)).relu()).relu().mean((2, 3))
        return self.head(self.shared(self.shared(x).relu()))


NET = Net().eval()
IMAGES = torch.randn(8, 3, 10, 10, generator=torch.Generator().manual_seed(1))


def run(workers=None, images=IMAGES, journal=None, on_layer=None, threads=1, **settings):
    return compress(
        NET,
        Settings.of(**{'effort': 0.01, 'min_numel': 256, **settings}),
        dataset_meta={},
        source=Source('net.pth', 'ab' * 32),
        probe=None if images is None else ImageProbe(images, 2, {'kind': 'noise'}),
        workers=workers,
        journal=journal,
        on_layer=on_layer,
        threads=threads,
    )


# ---- sharing out


@given(st.lists(st.floats(0, 1e6), max_size=40), st.integers(1, 9))
def test_the_last_is_done_at_most_one_piece_after_the_mean(costs, size):
    owners = share_out(costs, size)
    loads = [sum(cost for cost, owner in zip(costs, owners) if owner == rank) for rank in range(size)]
    assert len(owners) == len(costs) and all(0 <= owner < size for owner in owners)
    assert max(loads) <= sum(costs) / size + max(costs, default=0) + 1e-6


@given(st.lists(st.binary(max_size=20), max_size=10))
def test_parts_that_are_joined_can_be_split(parts):
    assert split(join(parts)) == parts


def test_one_process_has_what_it_gave():
    assert Workers().exchange(b'a') == Workers().gather(b'a', 0) == [b'a']


@pytest.mark.parametrize('representation', ['lattice', 'sigmoid'])
def test_predicted_cost_grows_with_every_size(representation):

    def cost(rows, columns):
        return predicted_seconds(get_representation(representation), WeightView('w', (rows, columns)))

    assert 0 < cost(64, 64) < cost(128, 64) < cost(128, 128) < cost(128, 12_544)
    if representation == 'lattice':  # blocks of columns bound the cost of a wide matrix
        assert cost(128, 4 * 6144) == pytest.approx(4 * cost(128, 6144), rel=0.01)


# ---- compression


@pytest.mark.parametrize('size', [2, 3])
@pytest.mark.parametrize(
    'settings',
    [
        {'bits': 3.0},
        {'tolerance': 0.2},
        {},
        {'representation': 'bilinear', 'bits': 7.0},
        {'representation': 'sigmoid', 'bits': 14.0, 'images': None},
        {'bits': 3.0, 'images': None},
        {'bits': 3.0, 'images': IMAGES[:1]},
        {'bits': 3.0, 'recalibration': False},
    ],
    ids=str,
)
def test_the_same_bytes_as_with_one_process(size, settings):
    alone = run(**settings)
    first, *others = together(size, lambda workers: run(workers, **settings))
    assert others == [None] * (size - 1)
    assert first.archive.to_bytes() == alone.archive.to_bytes()
    stages = {'factor', 'solve', 'write'}
    if settings.get('representation') not in ('bilinear', 'sigmoid'):
        assert stages <= set(first.report['weights'][0]['seconds_of_stage']) and first.report['totals']['turns'] > 1
    times = {'seconds', 'seconds_of_stage', 'wall_seconds', 'stages', 'processes'}
    ours, theirs = (
        json.dumps(
            [
                {key: value for key, value in entry.items() if key not in times}
                for entry in (*found.report['weights'], found.report['totals'])
            ]
        )
        for found in (first, alone)
    )
    assert ours == theirs and first.report['totals']['processes'] == size


def test_each_weight_is_solved_by_one_process():
    done = [[], []]

    def work(workers):
        run(workers, bits=3.0, on_layer=lambda *state: done[workers.rank].append(state))

    together(2, work)
    for states in done:
        of = states[0][1]
        assert 1 <= of <= 4 and len(states) % of == 0
        assert [state[0] for state in states] == list(range(1, of + 1)) * (len(states) // of)
        assert all(size > 0 for _, _, size in states)
    assert sum(states[0][1] for states in done) == 5 and len(done[0]) // done[0][0][1] == len(done[1]) // done[1][0][1]


def test_several_processes_go_on_with_the_journal_of_another_number_of_them(tmp_path):
    expected = run(bits=3.0).archive.to_bytes()
    journal = Journal(tmp_path / 'j')
    journal.begin({})
    assert run(bits=3.0, journal=journal).archive.to_bytes() == expected
    before = {path.name: path.stat().st_mtime_ns for path in journal.folder.iterdir()}
    assert len(before) > 20
    for size in (1, 2, 3):
        first, *_ = together(size, lambda workers: run(workers, bits=3.0, journal=journal))
        assert first.archive.to_bytes() == expected
    assert {path.name: path.stat().st_mtime_ns for path in journal.folder.iterdir()} == before


def test_an_error_in_one_process_is_not_lost():
    def work(workers):
        if workers.rank == 1:
            raise RiemError('broken')
        return run(workers, bits=3.0)

    with pytest.raises((RiemError, threading.BrokenBarrierError)):
        together(2, work)


# ---- images of the network itself


@pytest.mark.parametrize('size', [2, 4])
def test_all_processes_get_the_same_images_of_the_network(size):
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()).eval()
    network[1].running_mean.normal_(generator=torch.Generator().manual_seed(0))
    start = procedural_images(5, 16, 16)

    def run_once(model, pixels, first):
        return [model(pixels)]

    def made(workers):
        return synthesise(network, start, run_once, lambda *_: None, 3, 2, executor=Executor(1, workers))

    alone = made(Workers())
    assert not torch.equal(alone, start)
    assert all(torch.equal(images, alone) for images in together(size, made))
