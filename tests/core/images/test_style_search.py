"""The procedural images of a network are those whose statistics its batch norms hold."""

import copy

import pytest
import torch
from torch import nn

from mmriem.core.execution.executor import Executor
from mmriem.core.images.probe import ImageProbe
from mmriem.core.images.procedural import PLAIN, Style, procedural_images
from mmriem.core.images.style_search import DEFAULT, choose_style, distance


def probe_of(style, count=16, seed=0):
    images = procedural_images(count, 24, 24, seed, style).float() / 128 - 1
    return ImageProbe(images, description={'style': style.describe()})


@pytest.fixture
def network():
    torch.manual_seed(0)
    first, second = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3)
    return nn.Sequential(first, nn.BatchNorm2d(16), nn.ReLU(), second, nn.BatchNorm2d(16), nn.Flatten()).eval()


def trained(network, style):
    """The network with the statistics of other images of the style."""
    for module in network:
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
    network.train()
    probe_of(style, 32, seed=9).run(network, 0, 32)
    return network.eval()


@pytest.mark.parametrize('style', [PLAIN, DEFAULT, Style(light=-0.2)])
def test_the_style_of_training_is_found(network, style):
    assert choose_style(trained(network, style), probe_of) == style


def test_a_style_that_is_almost_like_that_of_training_is_found(network):
    model = trained(network, Style(scale=2, colour=0.2, contrast=(0.1, 0.5), light=0.2))
    found, start = (distance(model, probe_of(which)) for which in (choose_style(model, probe_of), DEFAULT))
    assert found < 0.3 * start


def test_the_network_is_left_as_it_was(network):
    model = trained(network, Style(light=0.2)).train()
    model[1].eval()
    before = copy.deepcopy(model.state_dict())
    choose_style(model, probe_of)
    assert [module.training for module in model.modules()] == [True, True, False, True, True, True, True]
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_norms_that_hold_no_statistics_tell_nothing(network):
    def refuse(style):
        raise AssertionError('no image is needed')

    assert choose_style(network, refuse) is DEFAULT  # fresh norms
    for module in network:
        if isinstance(module, nn.BatchNorm2d):
            module.running_var.fill_(0.999)  # folded into the convolutions
    assert choose_style(network, refuse) is DEFAULT
    assert choose_style(nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4)), refuse) is DEFAULT


def test_the_distance_is_the_divergence_of_normal_distributions():
    norm = nn.BatchNorm2d(2, eps=0).eval()
    norm.running_mean.copy_(torch.tensor([0.0, 1.0]))
    norm.running_var.copy_(torch.tensor([1.0, 4.0]))
    images = torch.tensor([[1.0, 5.0, 1.0, 5.0], [1.0, 1.0, 3.0, 3.0]]).view(1, 2, 2, 2)
    seen = [torch.distributions.Normal(3.0, 2.0), torch.distributions.Normal(2.0, 1.0)]
    held = [torch.distributions.Normal(0.0, 1.0), torch.distributions.Normal(1.0, 2.0)]
    expected = sum(float(torch.distributions.kl_divergence(a, b)) for a, b in zip(seen, held)) / 2
    assert distance(norm, ImageProbe(images)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize('threads', [1, 3])
def test_the_style_does_not_depend_on_the_threads(network, threads):
    model = trained(network, Style(colour=0.2, light=0.1))
    alone = choose_style(model, probe_of)
    assert choose_style(model, probe_of, Executor(threads)) == alone != DEFAULT
