"""Several sizes of one network: each file is that of its budget alone, and what they share is done once."""

import pytest
import torch
from torch import nn

from mmriem.core.errors import RiemError
from mmriem.core.file.manifest import Source
from mmriem.core.images.probe import ImageProbe
from mmriem.core.pipeline import ladder
from mmriem.core.pipeline.compress import compress
from mmriem.core.pipeline.ladder import climb
from mmriem.core.pipeline.settings import Budget, Settings

TOLD = dict(dataset_meta={}, source=Source('net.pth', 'ab' * 32))


@pytest.fixture(scope='module')
def net():
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 24, 3), nn.BatchNorm2d(24), nn.ReLU(), nn.Conv2d(24, 32, 3), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 40)).eval()


class Counted(ImageProbe):
    """Counts the images that networks are run on."""

    count = 0

    def run(self, model, first, last):
        self.count += last - first
        return super().run(model, first, last)


def probe():
    return Counted(torch.randn(6, 3, 10, 10, generator=torch.Generator().manual_seed(1)), 3, {'kind': 'noise'})


BUDGETS = [Budget(bits=bits) for bits in (6.0, 4.0, 3.0)]


@pytest.mark.parametrize(
    'options',
    [{}, {'threads': 2}, {'tuning': 2}, {'recalibration': False}, {'representation': 'bilinear'}, {'without': True}],
    ids=str,
)
def test_each_file_is_that_of_its_budget_alone(net, options):
    options = dict(options)
    threads, images = options.pop('threads', 1), None if options.pop('without', False) else probe()
    budgets = [Budget(bits=bits) for bits in (12.0, 9.0)] if 'representation' in options else BUDGETS
    settings = Settings.of(min_numel=256, **options)
    rungs = list(climb(net, settings, budgets, probe=images, threads=threads, **TOLD))
    assert [rung.budget for rung in rungs] == budgets and not any(rung.refused for rung in rungs)
    for rung in rungs:
        alone = compress(net, settings.changed(bits=rung.budget.bits), probe=images, **TOLD)
        assert rung.compressed.archive.to_bytes() == alone.archive.to_bytes()


def test_metric_and_statistics_of_the_original_are_taken_once(net, monkeypatch):
    measured, counts, measure = [], [], ladder.measure
    monkeypatch.setattr(ladder, 'measure', lambda *a, **k: measured.append(a) or measure(*a, **k))
    for budgets in (BUDGETS[:1], BUDGETS):
        images = probe()
        list(climb(net, Settings.of(min_numel=256), budgets, probe=images, **TOLD))
        counts.append(images.count)
    assert len(measured) == 2
    assert counts[1] - counts[0] == (len(BUDGETS) - 1) * 6  # each further file runs the compressed network alone


def test_a_size_that_is_out_of_reach_is_told_and_the_others_are_there(net):
    budgets = [Budget(bits=6.0), Budget(size=10), Budget(bits=4.0)]
    first, second, third = climb(net, Settings.of(min_numel=256), budgets, probe=probe(), **TOLD)
    assert first.compressed and third.compressed and second.compressed is None
    assert second.refused.startswith('budget: expected')


def test_one_that_would_be_hopeless_is_refused(net):
    budgets = [Budget(bits=6.0), Budget(bits=2.0)]
    _, second = climb(net, Settings.of(min_numel=256), budgets, probe=probe(), most_error=0.05, **TOLD)
    assert 'expected a predicted error of the outputs of at most 0.05' in second.refused


def test_progress_only_rises(net):
    seen = []
    told = dict(TOLD, on_progress=lambda share, name: seen.append(share))
    list(climb(net, Settings.of(min_numel=256), BUDGETS, probe=probe(), **told))
    assert seen == sorted(seen) and seen[-1] == pytest.approx(1.0)


def test_no_size_is_an_error(net):
    with pytest.raises(RiemError, match='ladder: expected at least one size'):
        list(climb(net, Settings(), [], **TOLD))
