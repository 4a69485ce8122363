"""What does not depend on the version of PyTorch."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mmriem.core.live.complexity import Macs, count_macs
from mmriem.core.torch_versions import fused_adam


def minimise(optimiser, parameter, steps=40):
    for _ in range(steps):
        optimiser.zero_grad()
        ((parameter - 3.0) ** 2).sum().backward()
        optimiser.step()
    return parameter.detach()


def test_adam_where_there_is_no_fused_kernel_takes_the_same_steps(monkeypatch):
    fused, plain = (nn.Parameter(torch.zeros(5)) for _ in range(2))
    expected = minimise(torch.optim.Adam([plain], lr=0.1, betas=(0.9, 0.99)), plain)
    torch.testing.assert_close(minimise(fused_adam([fused], lr=0.1, betas=(0.9, 0.99)), fused), expected)

    original = torch.optim.Adam

    def old(parameters, fused=False, **settings):
        if fused:
            raise RuntimeError('`fused=True` requires all the params to be CUDA, floating point Tensor')
        return original(parameters, **settings)

    monkeypatch.setattr(torch.optim, 'Adam', old)
    other = nn.Parameter(torch.zeros(5))
    assert torch.equal(minimise(fused_adam(iter([other]), lr=0.1, betas=(0.9, 0.99)), other), expected)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(8, 8))

    def forward(self, x):
        x = x @ self.weight
        return F.scaled_dot_product_attention(x, x, x)


def test_attention_is_counted_without_its_fused_kernel():
    before = torch.backends.cuda.flash_sdp_enabled()
    net = Attention()
    assert count_macs(net, lambda: net(torch.zeros(1, 2, 5, 8))) == Macs({'weight': 10 * 64}, 2 * 2 * 25 * 8)
    assert torch.backends.cuda.flash_sdp_enabled() == before


def test_the_fast_path_of_a_transformer_layer_is_not_taken():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    macs = count_macs(layer, lambda: layer(torch.zeros(3, 5, 8)))
    assert macs.weights == {
        'self_attn.in_proj_weight': 15 * 8 * 24,
        'self_attn.out_proj.weight': 15 * 64,
        'linear1.weight': 15 * 128,
        'linear2.weight': 15 * 128,
    }
    assert macs.others == 3 * 2 * 25 * 8


@pytest.mark.parametrize(
    ('layer', 'shape', 'macs'),
    [
        (nn.Conv1d(4, 6, 3, groups=2), (2, 4, 9), 2 * 7 * 6 * 2 * 3),
        (nn.ConvTranspose2d(4, 6, 3, stride=2), (2, 4, 5, 5), 2 * 25 * 4 * 6 * 9),
        (nn.Conv3d(2, 3, 2, bias=False), (1, 2, 4, 4, 4), 27 * 3 * 2 * 8),
        (nn.Linear(5, 3), (5,), 15),
        (nn.Linear(5, 3, bias=False), (2, 7, 5), 14 * 15),
    ],
)
def test_macs_by_hand(layer, shape, macs):
    assert count_macs(layer, lambda: layer(torch.zeros(shape))).weights == {'weight': macs}


def test_vectors():
    net = nn.Module()
    net.w = nn.Parameter(torch.zeros(4, 6))
    x = torch.zeros(6)
    assert count_macs(net, lambda: (net.w @ x, x @ x, torch.addmv(torch.zeros(4), net.w, x))) == Macs({'w': 48}, 6)
