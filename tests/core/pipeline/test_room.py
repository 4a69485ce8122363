"""A budget is met, or refused before anything is run; corrections give way to it."""

import pytest
import torch
from torch import nn

from mmriem.core.errors import RiemError
from mmriem.core.file.manifest import Source
from mmriem.core.file.vectors import LEAST_PRECISION, precision_for
from mmriem.core.images.probe import ImageProbe
from mmriem.core.pipeline.archiving import Frame, archive_within
from mmriem.core.pipeline.compress import compress
from mmriem.core.pipeline.settings import Selection, Settings
from mmriem.core.weights.views import find_weights

SOURCE = Source('net.pth', 'ab' * 32)
IMAGES = torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def network(share=1.0):
    """A convolution that weight decay has shrunk to that share, and its norm with it."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 32, 3), nn.BatchNorm2d(32), nn.ReLU()]
    layers += [nn.Conv2d(32, 32, 3, bias=False), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 10, 1)]
    with torch.no_grad():
        layers[3].weight.mul_(share)
        layers[4].weight.mul_(share)
    return nn.Sequential(*layers).eval()


def run(model, probe=None, **settings):
    return compress(model, Settings.of(**settings), dataset_meta={}, source=SOURCE, probe=probe)


class Untouched(ImageProbe):
    """Images that no network may run on."""

    def run(self, model, first, last):
        raise AssertionError('the network was run')


@pytest.mark.parametrize('representation', ['lattice', 'bilinear'])
@pytest.mark.parametrize('size', [200, 1700])
def test_a_size_that_no_file_has_is_refused_before_the_network_runs(size, representation):
    with pytest.raises(RiemError, match=r'budget: .*ask for a larger ratio or more bits'):
        run(network(), Untouched(IMAGES), size=size, representation=representation)


@pytest.mark.parametrize('share', [1.0, 1e-6, 1e-8])
def test_a_size_little_above_the_least_is_met(share):
    compressed = run(network(share), ImageProbe(IMAGES), size=2400)
    assert len(compressed.archive.to_bytes()) <= 2400


def corrected(state_dict):
    """Norms that are constants before, and numbers after."""
    generator = torch.Generator().manual_seed(1)
    norms = ('running_mean', 'running_var')
    return {
        key: torch.rand(x.shape, generator=generator) + 1 if key.endswith(norms) else x for key, x in state_dict.items()
    }


@pytest.mark.parametrize('left_out', [0, 1, 2])
def test_as_many_corrections_are_left_out_as_have_no_room(left_out):
    model = network()
    before = model.state_dict()
    after = corrected(before)
    frame = Frame(model, tuple(find_weights(model)), Selection(), {}, SOURCE, {})
    coarsest = precision_for(2.0) - LEAST_PRECISION
    norms = ['1', '4']

    def size(count):
        kept = {key: before[key] for name in norms[:count] for key in before if key.startswith(f'{name}.running')}
        return len(frame.archive({}, {**after, **kept}, 2.0, coarsest).to_bytes())

    fitting = archive_within(frame, {}, after, before, 2.0, 8 * size(left_out))
    assert len(fitting.uncorrected) == left_out and len(fitting.archive.to_bytes()) <= size(left_out)
    decoded = fitting.archive.decode()
    for name in norms:
        is_original = torch.equal(decoded[f'{name}.running_mean'], before[f'{name}.running_mean'])
        assert is_original == (name in fitting.uncorrected)
    with pytest.raises(RiemError, match='expected a file of 100 bytes'):
        archive_within(frame, {}, after, before, 2.0, 800)
