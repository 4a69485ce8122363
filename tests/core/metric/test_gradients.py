"""Networks that switch gradients off have the metric that they have with gradients."""

import threading

import pytest
import torch
from torch import nn

from mmriem.core.errors import RiemError
from mmriem.core.images.probe import ImageProbe
from mmriem.core.metric.gradients import tolerant_gradients
from mmriem.core.metric.pullback import collect
from mmriem.core.weights.views import find_weights


class Net(nn.Module):
    """Two convolutions, and what goes on between them."""

    def __init__(self, forward):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3)
        self._forward = forward

    def forward(self, x):
        return self._forward(self, x)


def plain(net, x):
    return net.second(net.first(x))


def frozen(net, x):
    with torch.no_grad():
        x = net.first(x)
    return net.second(x)


def inferring(net, x):
    with torch.inference_mode():
        x = net.first(x)
    return net.second(x)


def as_numpy(net, x):
    x = net.first(x)
    assert x.numpy().shape == x.shape
    return net.second(x)


def needs_what_it_says(net, x):
    """A change in place of a weight, which autograd allows nobody."""
    with torch.no_grad():
        net.first.weight.mul_(1.0)
        x = net.first(x)
    return net.second(x)


def halved(net, x):
    parts = net.first(x).split(4, 1)
    parts[0].mul_(2.0)
    parts[1][:, :1] = 0
    return net.second(torch.cat(parts, 1))


def halved_elsewhere(net, x):
    x = net.first(x)
    scale = torch.ones(1, 8, 1, 1)
    scale[:, :4], scale[:, 4] = 2.0, 0.0
    return net.second(x * scale)


def iterated(net, x):
    first, *_ = x = net.first(x)
    first.mul_(2.0)
    return net.second(x)


def iterated_elsewhere(net, x):
    x = net.first(x)
    return net.second(x * torch.tensor([2.0, 1.0]).view(2, 1, 1, 1))


def metrics(forward, views=None, images=2):
    net = Net(forward).eval()
    torch.manual_seed(1)
    return collect(net, views or find_weights(net, min_numel=1), ImageProbe(torch.randn(images, 3, 9, 9)))


def assert_same(found, wanted):
    assert set(found) == set(wanted) == {'first.weight', 'second.weight'}
    for name, metric in found.items():
        assert metric.source == 'inputs'
        torch.testing.assert_close(metric.dense(), wanted[name].dense(), rtol=1e-5, atol=0)
        torch.testing.assert_close(metric.output_weights, wanted[name].output_weights, rtol=1e-5, atol=0)


@pytest.mark.parametrize('whole', [torch.no_grad, torch.inference_mode], ids=lambda mode: mode.__name__)
def test_a_network_all_without_gradients_has_the_metric_of_one_with(whole):
    assert_same(metrics(whole()(plain)), metrics(plain))


@pytest.mark.parametrize('forward', [frozen, inferring, as_numpy, needs_what_it_says], ids=lambda work: work.__name__)
def test_a_part_without_gradients_has_the_metric_of_one_with(forward):
    assert_same(metrics(forward), metrics(plain))


@pytest.mark.parametrize(('forward', 'elsewhere'), [(halved, halved_elsewhere), (iterated, iterated_elsewhere)])
def test_parts_of_a_tensor_may_be_changed_in_place(forward, elsewhere):
    """As under `no_grad`, where these run; the metric is that of the same function without a change in place."""
    torch.manual_seed(1)
    x = torch.randn(2, 3, 9, 9)
    with torch.no_grad():
        torch.testing.assert_close(Net(forward)(x), Net(elsewhere)(x))
    assert_same(metrics(forward), metrics(elsewhere))


def test_weights_that_no_gradient_can_reach_have_no_metric():
    def refuses(net, x):
        with torch.no_grad():
            x = net.first(x)
            if x.requires_grad:
                raise ValueError('not with gradients')
        return net.second(x)

    assert set(metrics(refuses)) == {'second.weight'}


@pytest.mark.parametrize('images', [2, 70])
def test_values_that_a_gradient_needs_may_be_changed(images):
    """Of one batch and of several."""

    def sound(net, x):
        return net.second(net.first(x).sigmoid())

    def spoils(net, x):
        x = net.first(x).sigmoid()
        y = net.second(x)
        x[..., ::2] += 1
        x.zero_()
        return y

    assert_same(metrics(spoils, images=images), metrics(sound, images=images))


class WithoutDerivative(torch.autograd.Function):
    """As somebody writes it who never trains."""

    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, gradient):
        raise NotImplementedError('nobody has written it')


def test_a_function_without_a_derivative_is_one_error():
    with pytest.raises(RiemError, match=r"Net: .* outputs, found nobody has written it; use metric='identity'"):
        metrics(lambda net, x: net.second(WithoutDerivative.apply(net.first(x))))


def test_outputs_without_gradients_are_one_error():
    def refuses(net, x):
        with torch.no_grad():
            if net.first(x).requires_grad:
                raise ValueError('not with gradients')
            return net.second(net.first(x))

    with pytest.raises(RiemError, match=r"Net: .* found that it computes none; use metric='identity'"):
        metrics(refuses)


def test_torchscript_has_a_metric_from_gradients():
    net = torch.jit.script(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))).eval()
    found = collect(net, find_weights(net, min_numel=1), ImageProbe(torch.randn(2, 3, 9, 9)))
    assert {name: metric.source for name, metric in found.items()} == {'0.weight': 'gradients', '2.weight': 'gradients'}


def test_inference_mode_is_itself_elsewhere_and_afterwards():
    enter, seen = torch.inference_mode.__enter__, []

    def other_thread():
        with torch.inference_mode():
            seen.append(torch.is_inference_mode_enabled())

    with tolerant_gradients():
        with torch.inference_mode():
            assert not torch.is_inference_mode_enabled() and torch.is_grad_enabled()
        thread = threading.Thread(target=other_thread)
        thread.start()
        thread.join()
    assert seen == [True] and torch.inference_mode.__enter__ is enter
    with torch.inference_mode():
        assert torch.is_inference_mode_enabled()
    assert not torch.is_inference_mode_enabled()
