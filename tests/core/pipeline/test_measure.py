"""Metrics of a journal: kept while they are whole, measured again where one is damaged or lost."""

import pytest
import torch
from torch import nn

from mmriem.core.errors import Interrupted
from mmriem.core.execution.executor import Executor
from mmriem.core.execution.journal import Journal
from mmriem.core.images.probe import ImageProbe
from mmriem.core.pipeline.job import Job
from mmriem.core.pipeline.measure import measure
from mmriem.core.pipeline.progress import WorkLog
from mmriem.core.pipeline.settings import Settings


class Counted(ImageProbe):
    """Counts how often the network is run."""

    runs = 0

    def run(self, model, first, last):
        self.runs += 1
        return super().run(model, first, last)


@pytest.fixture
def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 16)).eval()


@pytest.fixture
def journal(tmp_path):
    return Journal(tmp_path / 'j')


def measured(net, journal):
    """The metrics, and how often the network was run for them."""
    journal.begin({})
    probe = Counted(torch.randn(8, 16, generator=torch.Generator().manual_seed(1)), 4)
    job = Job.of(net, Settings.of(bits=3.0, min_numel=1), probe, 'cpu', Executor(journal=journal))
    return measure(job, probe, WorkLog({'images': 1.0}, job.owners)), probe.runs


def pieces(journal, least):
    """Those of at least so many bytes: the metrics, or all."""
    return sorted(path for path in journal.folder.glob('*.piece') if path.stat().st_size > least)


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 16
    path.write_bytes(data)


def test_metrics_that_are_whole_are_not_measured_again(net, journal):
    _, runs = measured(net, journal)
    assert runs > 0 and len(pieces(journal, 200)) == 2
    assert measured(net, journal)[1] == 0


@pytest.mark.parametrize('damage', [flip, lambda path: path.unlink(), lambda path: path.write_bytes(b'')])
@pytest.mark.parametrize('least', [200, 0], ids=['a metric', 'any piece'])
def test_one_that_is_damaged_or_lost_is_measured_again(net, journal, damage, least):
    first, _ = measured(net, journal)
    for path in pieces(journal, least):
        before = {path: path.read_bytes() for path in pieces(journal, 0)}
        damage(path)
        again, runs = measured(net, journal)
        assert runs > 0 and {path: path.read_bytes() for path in pieces(journal, 0)} == before
        assert again.sources == first.sources


def test_one_that_is_lost_later_ends_the_run_and_keeps_the_rest(net, journal):
    metrics, _ = measured(net, journal)
    for path in pieces(journal, 200):
        flip(path)
    with pytest.raises(Interrupted, match=r"expected the metric of weight '0.weight'.* go on with --resume"):
        metrics.take('0.weight')
    again, runs = measured(net, journal)
    assert runs > 0 and again.take('0.weight') is not None
