import math

import pytest
import torch
from torch import nn

import mmriem
from mmriem.core.errors import RiemError
from mmriem.core.weights.soundness import require_sound


class Masked(nn.Module):
    """A network with a mask of minus infinity, as attention has."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 24, 3)
        self.norm = nn.BatchNorm2d(24)
        self.small = nn.Conv2d(24, 2, 1)
        self.register_buffer('mask', torch.full((4, 4), -math.inf).triu(1))

    def forward(self, x):
        return self.small(self.norm(self.conv(x)))


def test_masks_may_be_infinite_and_variances_zero():
    net = Masked()
    net.norm.running_var.zero_()
    require_sound(net)
    report = mmriem.compress(net, bits=20.0, metric='identity', threads=1).report
    assert report['totals']['bytes'] > 0


@pytest.mark.parametrize('metric', ['identity', 'pullback'])
@pytest.mark.parametrize(
    ('key', 'value', 'told'),
    [
        ('norm.running_mean', math.nan, 'expected finite values, found 1 of 24 NaN or infinite'),
        ('norm.running_var', math.inf, 'expected finite values, found 1 of 24 NaN or infinite'),
        ('norm.running_var', -1e-3, r'expected variances of at least 0, found -0\.001'),
        ('norm.weight', -math.inf, 'expected finite values'),
        ('norm.bias', math.nan, 'expected finite values'),
        ('small.weight', math.nan, 'expected finite values, found 1 of 48'),
        ('conv.weight', math.nan, 'expected finite values, found 1 of 648'),
        ('conv.bias', math.inf, 'expected finite values'),
    ],
)
def test_what_has_no_meaning_is_named_before_the_network_runs(key, value, told, metric):
    net = Masked()
    with torch.no_grad():
        net.state_dict()[key].view(-1)[5] = value
    net.forward = None  # it must not run
    inputs = {'input_size': (3, 8, 8)} if metric == 'pullback' else {}
    with pytest.raises(RiemError, match=rf'^{key}: {told}.*; repair the checkpoint first$'):
        mmriem.compress(net, bits=8.0, metric=metric, threads=1, **inputs)
