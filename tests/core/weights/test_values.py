"""Tensors whose values cannot be read are named before any work begins."""

import pytest
import torch
from torch import nn

import mmriem
from mmriem.core.errors import RiemError
from mmriem.core.weights.values import require_values


def sparse_buffer():
    net = nn.Linear(4, 4)
    net.register_buffer('table', torch.eye(4).to_sparse())
    return net


def quantised_buffer():
    net = nn.Linear(4, 4)
    net.register_buffer('table', torch.quantize_per_tensor(torch.eye(4), 0.1, 0, torch.qint8))
    return net


@pytest.mark.parametrize(
    ('net', 'message'),
    [
        (lambda: nn.LazyLinear(3), r'weight: .* found one of a lazy module .* run it once'),
        (lambda: nn.Linear(3, 3, device='meta'), r'weight: .* found one without values'),
        (sparse_buffer, r'table: .* found a sparse one; make it dense'),
        (quantised_buffer, r'table: .* found a quantised one'),
    ],
)
def test_what_cannot_be_read_is_named(net, message):
    with pytest.raises(RiemError, match=message):
        require_values(net())
    with pytest.raises(RiemError, match=message):
        mmriem.compress(net(), bits=4.0, inputs=torch.zeros(1, 4))


def test_ordinary_tensors_pass():
    require_values(nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)).half())
