"""Every module that mmriem names, and any other one by its name in a config: heads, detectors, third-party networks."""

import copy
import pickle

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.model import BaseModule
from mmengine.registry import init_default_scope
from torch import nn

import mmriem.models
from mmriem.core.errors import RiemError
from mmriem.core.file import reading, writing
from mmriem.core.file.archive import Archive, WeightRecord
from mmriem.core.file.manifest import Source
from mmriem.core.live.module import LiveModule
from mmriem.core.live.states import WeightStates
from mmriem.models import RieMModule, riem_class

RIEM = dict(representation='bilinear', ratio=0.3, state_bits=8)
PART = {'Darknet': ['conv_res_block1.*', 'conv_res_block2.*']}
"""What is to hold states of a network that has no small form."""
HRNET = dict(
    stage1=dict(num_modules=1, num_branches=1, block='BOTTLENECK', num_blocks=(1,), num_channels=(16,)),
    stage2=dict(num_modules=1, num_branches=2, block='BASIC', num_blocks=(1, 1), num_channels=(16, 24)),
    stage3=dict(num_modules=1, num_branches=3, block='BASIC', num_blocks=(1,) * 3, num_channels=(16, 24, 32)),
    stage4=dict(num_modules=1, num_branches=4, block='BASIC', num_blocks=(1,) * 4, num_channels=(16, 24, 32, 40)),
)
BACKBONES = {
    'CSPDarknet': dict(deepen_factor=0.33, widen_factor=0.25),
    'CSPNeXt': dict(deepen_factor=0.167, widen_factor=0.25),
    'Darknet': dict(),
    'EfficientNet': dict(arch='b0', out_indices=(3, 4, 5), drop_path_rate=0.0),
    'HRNet': dict(extra=HRNET),
    'MobileNetV2': dict(widen_factor=0.5),
    'PyramidVisionTransformer': dict(pretrain_img_size=64, embed_dims=16, num_layers=(1,) * 4, drop_path_rate=0.0),
    'PyramidVisionTransformerV2': dict(embed_dims=16, num_layers=(1,) * 4, drop_path_rate=0.0),
    'RegNet': dict(arch=dict(w0=8, wa=8, wm=2.0, group_w=8, depth=8, bot_mul=1.0), base_channels=16, stem_channels=16),
    'Res2Net': dict(depth=50, scales=4, base_width=8, base_channels=16, stem_channels=16),
    'ResNeXt': dict(depth=50, groups=4, base_width=4, base_channels=16, stem_channels=16),
    'ResNet': dict(depth=18, base_channels=8),
    'ResNetV1d': dict(depth=18, base_channels=8, stem_channels=16),
    'SwinTransformer': dict(
        embed_dims=32, depths=[1, 1], num_heads=[2, 4], strides=(4, 2), out_indices=(0, 1), drop_path_rate=0.0
    ),
}
NECKS = {
    'CSPNeXtPAFPN': dict(in_channels=(16, 32, 64), out_channels=32, num_csp_blocks=1),
    'ChannelMapper': dict(in_channels=[16, 32, 64], out_channels=32),
    'DyHead': dict(in_channels=32, out_channels=32, num_blocks=1),
    'FPN': dict(in_channels=[16, 32, 64], out_channels=32, num_outs=4),
    'NASFPN': dict(in_channels=[16, 32, 64], out_channels=32, num_outs=5, stack_times=1, norm_cfg=dict(type='BN')),
    'PAFPN': dict(in_channels=[16, 32, 64], out_channels=32, num_outs=4),
    'SSDNeck': dict(
        in_channels=(32, 64), out_channels=(32, 64, 64), level_strides=(2,), level_paddings=(1,), last_kernel_size=3
    ),
    'YOLOXPAFPN': dict(in_channels=[16, 32, 64], out_channels=32, num_csp_blocks=1),
}


class ThirdPartyNet(BaseModule):
    """A backbone that mmriem knows nothing of, with a parameter of its own."""

    def __init__(self, width, init_cfg=None):
        super().__init__(init_cfg)
        self.width = width
        self.scale = nn.Parameter(torch.ones(width, 8, 8))
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.body = nn.Sequential(nn.Conv2d(width, width, 3, padding=1, groups=2), nn.BatchNorm2d(width), nn.GELU())
        self.attention = nn.MultiheadAttention(width, 2, batch_first=True)

    def forward(self, x):
        x = self.body(self.stem(x)) * self.scale.mean((1, 2))[:, None, None]
        tokens = x.flatten(2).transpose(1, 2)
        return (x, self.attention(tokens, tokens, tokens)[0])


@pytest.fixture
def third_party():
    """Registers `ThirdPartyNet` in mmdet's registry, as a user's file does."""
    MODELS.register_module(module=ThirdPartyNet)
    yield
    MODELS.module_dict.pop('ThirdPartyNet')


def inputs_of(name):
    generator = torch.Generator().manual_seed(0)
    if name in BACKBONES:
        return torch.randn(2, 3, 64, 64, generator=generator)
    channels = NECKS[name]['in_channels']
    channels = [channels] * 3 if isinstance(channels, int) else channels
    return tuple(torch.randn(2, c, s, s, generator=generator) for c, s in zip(channels, (16, 8, 4)))


def written(live, path):
    """The module's states as a file, as a compression would have written it; its tensors."""
    state_dict, records = {}, []
    for name, module in live.named_modules():
        for attribute, states in module.riem._modules.items() if isinstance(module, LiveModule) else ():
            state_dict[f'{name}.{attribute}'] = states().detach()
            if (encoded := states.encoded()) is not None:
                records.append(WeightRecord(states.view, encoded))
    state_dict.update((key, x) for key, x in live.state_dict().items() if '.riem.' not in key)
    source = Source('x.pth', '0' * 64)
    writing.write(path, Archive.from_state_dict(state_dict, records, dataset_meta={}, source=source, settings={}))
    return reading.read(path).decode()


def assert_close(found, expected):
    assert len(found) == len(expected)
    for a, b in zip(found, expected):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * float(b.std()))


def test_all_names_are_tested():
    names = [name for name in mmriem.models.__all__ if issubclass_of_module(name)]
    assert {f'RieM{name}' for name in (*BACKBONES, *NECKS)} == set(names)


def issubclass_of_module(name):
    cls = getattr(mmriem.models, name)
    return isinstance(cls, type) and issubclass(cls, RieMModule) and cls is not RieMModule


@pytest.mark.parametrize('name', [*BACKBONES, *NECKS])
def test_drop_in_and_live_are_the_same(name, tmp_path):
    """Keys of the stock module for all that is not compressed, and its outputs with the weights of the same file."""
    options = {**BACKBONES, **NECKS}[name]
    torch.manual_seed(0)
    riem = dict(RIEM, include=PART.get(name, ['*']))
    live = MODELS.build(dict(type=f'mmriem.RieM{name}', riem=riem, **options))
    stock = MODELS.build(dict(type=name, **options))
    assert isinstance(live, type(stock)) and type(live).__name__ == f'RieM{name}'
    live.init_weights()
    tensors = written(live, tmp_path / 'x.riem')
    assert set(tensors) == set(stock.state_dict())
    assert not stock.load_state_dict(tensors).missing_keys
    live.load_state_dict(tensors)
    held = {
        f'{owner}.{attribute}'
        for owner, module in live.named_modules()
        if isinstance(module, LiveModule)
        for attribute in module.riem._modules
    }
    own = {key for key in live.state_dict() if '.riem.' not in key}
    assert own == set(stock.state_dict()) - held and len(held) >= 2
    live.eval(), stock.eval()
    with torch.no_grad():
        assert_close(live(inputs_of(name)), stock(inputs_of(name)))


def test_a_third_party_backbone_by_config_alone(third_party, tmp_path):
    config = Config(dict(backbone=dict(type='mmriem.RieMThirdPartyNet', width=32, riem=RIEM), default_scope='mmdet'))
    init_default_scope(config.default_scope)
    live = MODELS.build(config.backbone)
    assert isinstance(live, ThirdPartyNet) and live.width == 32 and live.__doc__.startswith('`ThirdPartyNet`')
    assert type(live) is riem_class(ThirdPartyNet)
    held = {name for name, module in live.named_modules() if isinstance(module, WeightStates)}
    attention = {f'attention.{name}' for name in ('riem.in_proj_weight', 'out_proj.riem.weight')}
    assert held == {'stem.riem.weight', 'body.0.riem.weight'} | attention and isinstance(live.scale, nn.Parameter)
    stock = MODELS.build(dict(type='ThirdPartyNet', width=32))
    tensors = written(live, tmp_path / 'x.riem')
    stock.load_state_dict(tensors)
    x = torch.randn(1, 3, 8, 8)
    with torch.no_grad():
        expected = stock.eval()(x)
        live.load_state_dict(tensors)
        live.eval()
        assert_close(live(x), expected)
        for copied in (copy.deepcopy(live), pickle.loads(pickle.dumps(live))):
            assert type(copied) is type(live) and repr(copied) == repr(live)
            assert all(torch.equal(a, b) for a, b in zip(copied(x), live(x)))


def test_a_module_that_is_no_module_of_mmengine():
    live = riem_class(nn.TransformerEncoderLayer)(32, 2, 64, batch_first=True, riem=RIEM)
    live.init_weights()
    assert 'linear1.riem.weight.q' in live.state_dict() and live(torch.zeros(1, 4, 32)).shape == (1, 4, 32)


def test_a_class_of_another_scope(third_party):
    """A name is looked up in the default scope, then in all; or in the one that it states."""
    init_default_scope('mmengine')
    for name in ('mmriem.RieMThirdPartyNet', 'mmriem.RieMmmdet.ThirdPartyNet'):
        assert mmriem.registry.MODELS.get(name) is riem_class(ThirdPartyNet)
    init_default_scope('mmdet')


@pytest.mark.parametrize('name', ['Nothing', 'init_detector', 'mmdet.Nothing'])
def test_a_name_that_is_no_module(name):
    with pytest.raises(RiemError, match=rf'^mmriem\.RieM{name}: expected RieM and the name of a registered module'):
        MODELS.build(dict(type=f'mmriem.RieM{name}'))


def test_a_head_and_a_whole_detector(stock_config):
    """The head gets `train_cfg` from its detector, as a stock one does; a whole detector holds all weights."""
    for part in ('bbox_head', None):
        config = Config.fromfile(stock_config)
        settings = config.model if part is None else config.model[part]
        stock = MODELS.build(copy.deepcopy(config.model))
        settings.update(type=f'mmriem.RieM{settings.type}', riem=RIEM)
        detector = MODELS.build(copy.deepcopy(config.model))
        assert isinstance(detector, type(stock)) and detector.bbox_head.train_cfg == stock.bbox_head.train_cfg
        held = [name for name, module in detector.named_modules() if isinstance(module, WeightStates)]
        assert all(name.startswith('bbox_head.') for name in held) == (part == 'bbox_head') and held
        detector.init_weights()
        losses = detector.bbox_head(detector.extract_feat(torch.randn(1, 3, 64, 64)))
        sum(level.square().sum() for kind in losses for level in kind).backward()
        assert all(module.values.grad is not None for module in detector.modules() if isinstance(module, WeightStates))
