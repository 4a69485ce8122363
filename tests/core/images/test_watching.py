"""What goes into modules and comes out of them."""

import pytest
import torch
from torch import nn

from mmriem.core.images.watching import Side, watching


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 2)
        self.again = self.first
        self.plain = nn.Identity()

    def forward(self, x):
        return self.second(self.again(self.first(x)))


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net()


def test_each_call_is_seen_in_order_by_the_first_name_of_a_module(net):
    seen = []
    x = torch.randn(5, 3)
    sides = {'first': Side.INPUT, 'again': Side.INPUT, 'second': Side.OUTPUT, 'missing': Side.INPUT}
    with watching(net, sides, lambda name, module, values: seen.append((name, module, values))):
        output = net(x)
    assert [(name, module) for name, module, _ in seen] == [
        ('first', net.first), ('first', net.first), ('second', net.second)
    ]  # fmt: skip
    assert seen[0][2] is x and torch.equal(seen[1][2], net.first(x)) and torch.equal(seen[2][2], output)


def test_what_is_returned_takes_the_place_of_an_output_and_not_of_an_input(net):
    x = torch.randn(5, 3)
    expected = net(x)
    with watching(net, {'second': Side.OUTPUT}, lambda name, module, values: values + 1):
        assert torch.equal(net(x), expected + 1)
    with watching(net, {'second': Side.INPUT}, lambda name, module, values: values + 1):
        assert torch.equal(net(x), expected)


def test_afterwards_and_after_an_error_nothing_is_seen(net):
    seen = []
    with pytest.raises(ValueError), watching(net, {'first': Side.INPUT}, lambda *call: seen.append(call)):
        raise ValueError
    net(torch.randn(5, 3))
    assert not seen and not net.first._forward_pre_hooks


def test_calls_without_a_tensor_are_not_seen(net):
    seen = []
    sides = {'plain': Side.OUTPUT}
    with watching(net, sides, lambda *call: seen.append(call)):
        assert net.plain([1]) == [1]
    with watching(net, {'plain': Side.INPUT}, lambda *call: seen.append(call)):
        assert net.plain('text') == 'text'
    assert not seen
