"""RieM layers in stock modules, by `conv_cfg` and by the registry."""

import torch
from mmcv.cnn import ConvModule, build_conv_layer
from mmdet.models.backbones import ResNet
from mmdet.models.necks import FPN
from mmdet.registry import MODELS
from torch import nn

from mmriem.core.file.manifest import Source
from mmriem.core.live.layers import RieMConv2d, RieMLinear
from mmriem.core.live.module import LiveModule
from mmriem.core.live.states import WeightStates
from mmriem.core.pipeline.compress import compress
from mmriem.core.pipeline.settings import Settings

SOURCE = Source('x.pth', '0' * 64)
CONV = dict(type='mmriem.RieMConv2d', representation='bilinear', ratio=0.4)


def test_built_by_mmcv():
    conv = build_conv_layer(CONV, 16, 32, 3, stride=2, padding=1, bias=False)
    assert type(conv) is RieMConv2d and 'riem.weight.q' in conv.state_dict() and conv.bias is None
    module = ConvModule(16, 32, 3, padding=1, conv_cfg=CONV, norm_cfg=dict(type='BN'))
    assert module.out_channels == 32 and module.conv.bias is None
    he = (2 / (9 * 32)) ** 0.5
    torch.testing.assert_close(module.conv.weight.std().item(), he, rtol=0.05, atol=0)
    module(torch.randn(2, 16, 8, 8)).sum().backward()
    assert module.conv.riem.weight.values.grad is not None


def test_a_linear_layer_of_the_registry():
    layer = MODELS.build(dict(type='mmriem.RieMLinear', in_features=32, out_features=64, ratio=0.4))
    assert type(layer) is RieMLinear and layer(torch.zeros(2, 32)).shape == (2, 64)
    assert set(layer.state_dict()) == {'bias', *(f'riem.weight.{name}' for name in 'qpMbwc')}


def test_in_a_stock_backbone_and_neck():
    """Initialised, trained a step, and filled from a file, as with RieM modules."""
    torch.manual_seed(0)
    parts = dict(
        backbone=ResNet(18, base_channels=8, norm_eval=False, conv_cfg=CONV),
        neck=FPN([8, 16, 32, 64], 16, 4, conv_cfg=CONV),
    )
    live = nn.ModuleDict(parts)
    for part in parts.values():
        part.init_weights()
    assert type(live.neck.fpn_convs[0].conv) is RieMConv2d
    stock = nn.ModuleDict(dict(backbone=ResNet(18, base_channels=8, norm_eval=False), neck=FPN([8, 16, 32, 64], 16, 4)))
    settings = Settings.of(representation='bilinear', ratio=0.6)
    archive = compress(stock, settings, dataset_meta={}, source=SOURCE).archive
    live.load_state_dict(archive.decode())
    stock.load_state_dict(archive.decode())
    x = torch.randn(2, 3, 64, 64)
    outputs = live.neck(live.backbone(x))
    for found, expected in zip(outputs, stock.neck(stock.backbone(x))):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    sum(output.sum() for output in outputs).backward()
    convs = [module for module in live.modules() if isinstance(module, LiveModule)]
    assert len(convs) == 28 and all(p.grad is not None for conv in convs for p in conv.parameters())


def test_a_backbone_that_makes_no_weights():
    """Filled from a file, run and trained a step."""
    torch.manual_seed(0)
    options = dict(representation='bilinear', ratio=0.3, materialize=False)
    live = MODELS.build(dict(type='mmriem.RieMResNet', depth=18, base_channels=8, norm_eval=False, riem=options))
    stock = ResNet(18, base_channels=8, norm_eval=False)
    archive = compress(
        stock, Settings.of(representation='sigmoid', ratio=0.5, effort=0.02), dataset_meta={}, source=SOURCE
    ).archive
    live.load_state_dict(archive.decode())
    stock.load_state_dict(archive.decode())
    x = torch.randn(2, 3, 64, 64)
    live.eval()
    stock.eval()
    with torch.no_grad():
        for found, expected in zip(live(x), stock(x)):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))
    states = [module for module in live.modules() if isinstance(module, WeightStates)]
    assert states and all(module.values.numel() == 0 for module in states if 'w' in module.states())
    live.train()
    sum(output.sum() for output in live(x)).backward()
    assert all(module.values.grad.numel() == module.values.numel() > 0 for module in states)
