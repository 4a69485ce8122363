"""RieM backbones: what the stock class can do, with states."""

import copy
import pickle

import pytest
import torch
from mmdet.models.backbones import ResNet, SwinTransformer
from mmdet.registry import MODELS
from mmengine.config import ConfigDict
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

import mmriem.models
from mmriem.core.errors import RiemError
from mmriem.core.file import reading, writing
from mmriem.core.file.manifest import Source
from mmriem.core.live.module import LiveModule
from mmriem.core.live.states import WeightStates
from mmriem.core.pipeline.compress import compress
from mmriem.core.pipeline.settings import Settings
from mmriem.models.module import RieMModule

RIEM = dict(representation='bilinear', ratio=0.4)
RESNET = dict(depth=18, base_channels=8, norm_eval=False)
SWIN = dict(
    embed_dims=32,
    depths=[1, 2],
    num_heads=[8, 16],
    strides=(4, 2),
    out_indices=(0, 1),
    window_size=5,
    mlp_ratio=2,
    drop_path_rate=0.0,
)
STOCK = {'ResNet': (ResNet, RESNET), 'SwinTransformer': (SwinTransformer, SWIN)}
NAMES = tuple(STOCK)


def build(name, **options):
    torch.manual_seed(1)
    return MODELS.build(dict(type=f'mmriem.RieM{name}', riem=RIEM, **STOCK[name][1], **options))


def image():
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def total(outputs):
    return sum(output.square().sum() for output in outputs)


def states_of(module):
    return {key: value for key, value in module.state_dict().items() if '.riem.' in f'.{key}'}


def assert_holds(module, archive, prefix=''):
    """The states of every compressed weight, and no other ones."""
    expected = {}
    for record in archive.weights:
        owner, _, attribute = record.view.name.removeprefix(prefix).rpartition('.')
        for state, value in record.encoded.states().items():
            expected['.'.join(filter(None, (owner, 'riem', attribute, state)))] = value
    found = {key: value for key, value in states_of(module).items() if not key.endswith('.dense')}
    assert set(found) == set(expected) and expected
    assert all(torch.equal(found[key], expected[key]) for key in expected)


@pytest.fixture(scope='module', params=NAMES)
def compressed(request, tmp_path_factory):
    """Name of a backbone, the stock one with random weights, and its file with keys of a detector."""
    cls, options = STOCK[request.param]
    torch.manual_seed(0)
    detector = nn.ModuleDict(dict(backbone=cls(**options)))
    for parameter in detector.parameters():
        nn.init.normal_(parameter, std=0.1)
    settings = Settings.of(representation='bilinear', ratio=0.6)
    archive = compress(detector, settings, dataset_meta={}, source=Source('x.pth', '0' * 64)).archive
    path = tmp_path_factory.mktemp(request.param) / 'backbone.riem'
    writing.write(path, archive)
    detector.load_state_dict(archive.decode())
    detector.eval()
    return request.param, detector['backbone'], path


def test_classes_are_where_pickle_looks():
    classes = [value for name, value in vars(mmriem.models).items() if name in mmriem.models.__all__]
    classes = [
        cls for cls in classes if isinstance(cls, type) and issubclass(cls, RieMModule) and cls is not RieMModule
    ]
    assert {cls.__name__ for cls in classes} >= {'RieMResNet', 'RieMSwinTransformer', 'RieMFPN'}
    for cls in classes:
        assert pickle.loads(pickle.dumps(cls)) is cls is MODELS.get(f'mmriem.{cls.__name__}')
        assert issubclass(cls, cls.__mro__[2]) and cls.__name__ == f'RieM{cls.__mro__[2].__name__}'


@pytest.mark.parametrize('source', ['init_cfg', 'riem'])
def test_pretrained_states(compressed, source):
    """By mmdet's own `init_weights`, and when the module is built."""
    name, stock, path = compressed
    where = dict(checkpoint=str(path), prefix='backbone.')
    if source == 'init_cfg':
        live = build(name, init_cfg=ConfigDict(type='Pretrained', **where))
        live.init_weights()
    else:
        live = MODELS.build(dict(type=f'mmriem.RieM{name}', riem=dict(RIEM, **where), **STOCK[name][1]))
    assert_holds(live, reading.read(path), 'backbone.')
    with torch.no_grad():
        live.eval()
        for found, expected in zip(live(image()), stock(image())):
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_bias_tables_are_states_and_position_embeddings_parameters():
    live = build('SwinTransformer', use_abs_pos_embed=True, pretrain_img_size=32)
    assert 'stages.1.blocks.0.attn.w_msa.riem.relative_position_bias_table.q' in live.state_dict()
    assert isinstance(live.absolute_pos_embed, nn.Parameter)


@pytest.mark.parametrize('source', ['init_cfg', 'riem'])
def test_pretrained_weights_are_fitted(source, tmp_path, capfd):
    """Of the keys under a prefix, once, with progress."""
    torch.manual_seed(0)
    detector = nn.ModuleDict(dict(backbone=ResNet(**RESNET))).eval()
    detector['backbone'].init_weights()
    torch.save(detector.state_dict(), tmp_path / 'x.pth')
    where = dict(checkpoint=str(tmp_path / 'x.pth'), prefix='backbone.')
    riem = dict(representation='lattice', bits=8)
    if source == 'init_cfg':
        live = MODELS.build(
            dict(type='mmriem.RieMResNet', riem=riem, init_cfg=dict(type='Pretrained', **where), **RESNET)
        )
        live.init_weights()
    else:
        live = MODELS.build(dict(type='mmriem.RieMResNet', riem={**riem, **where}, **RESNET))
    told = ''.join(capfd.readouterr())
    assert told.count('fitting RieMResNet: 100 %') == 1
    live.eval()
    with torch.no_grad():
        for found, expected in zip(live(image()), detector['backbone'](image())):
            assert (found - expected).norm() < 0.05 * expected.norm()


@pytest.mark.parametrize('name', NAMES)
def test_initialised_like_the_stock_class(name):
    live = build(name)
    torch.manual_seed(1)
    stock = STOCK[name][0](**STOCK[name][1])
    parameters = list(live.parameters())
    live.init_weights()
    stock.init_weights()
    assert all(old is new for old, new in zip(parameters, live.parameters()))
    compared = 0
    for key, module in live.named_modules():
        if isinstance(module, LiveModule) and isinstance(module, (nn.Conv2d, nn.Linear)):
            expected = stock.get_submodule(key).weight.std()
            torch.testing.assert_close(module.weight.std(), expected, rtol=0.2, atol=0)
            compared += 1
    assert compared >= 8
    total(live(image())).backward()


@pytest.mark.parametrize('name', NAMES)
def test_frozen_stages(name):
    embedded = dict(use_abs_pos_embed=True, pretrain_img_size=32) if name == 'SwinTransformer' else {}
    live = build(name, frozen_stages=1, **embedded)
    live.train()
    frozen = [live.layer1] if name == 'ResNet' else [live.patch_embed, live.stages[0]]
    total(live(image())).backward()
    for module in frozen:
        held = [m for m in module.modules() if isinstance(m, WeightStates)]
        assert held and not any(m.training for m in held)
        assert not any(parameter.requires_grad for parameter in module.parameters())
        with torch.no_grad():
            assert held[0]() is held[0]()
    trained = live.layer4 if name == 'ResNet' else live.stages[1]
    assert all(p.grad is not None for p in trained.parameters())
    assert all(m.training for m in trained.modules() if isinstance(m, WeightStates))


def test_norms_in_eval_mode():
    live = MODELS.build(dict(type='mmriem.RieMResNet', riem=RIEM, **{**RESNET, 'norm_eval': True}))
    live.train()
    assert not any(m.training for m in live.modules() if isinstance(m, _BatchNorm))
    assert all(m.training for m in live.modules() if isinstance(m, LiveModule))


@pytest.mark.parametrize('name', NAMES)
def test_gradient_checkpointing(name):
    gradients = []
    for with_cp in (False, True):
        live = build(name, with_cp=with_cp)
        live.eval()  # batch statistics would be updated twice
        total(live(image().requires_grad_())).backward()
        gradients.append([parameter.grad for parameter in live.parameters()])
    assert all(gradient is not None for gradient in gradients[0])
    for found, expected in zip(*gradients):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize('copied', [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
def test_copies(name, copied):
    live = build(name)
    live.eval()
    other = copied(live)
    assert type(other) is type(live) and repr(other) == repr(live)
    with torch.no_grad():
        assert all(torch.equal(a, b) for a, b in zip(other(image()), live(image())))


def test_half_precision():
    live = build('ResNet')  # a stock Swin adds a float32 mask
    live.eval()
    with torch.no_grad():
        expected = live(image())
        for found, full in zip(live.to(torch.bfloat16)(image().bfloat16()), expected):
            assert found.dtype == torch.bfloat16
            assert (found.float() - full).norm() < 0.05 * full.norm()
        for found, full in zip(live.float()(image()), expected):
            assert (found - full).norm() < 0.02 * full.norm()  # norms and biases were rounded, states not


def test_parts_by_pattern():
    options = dict(RIEM, include=['layer3.*', 'layer4.*'], exclude=['*downsample*'])
    live = MODELS.build(dict(type='mmriem.RieMResNet', riem=options, **RESNET))
    assert {key.split('.')[0] for key in states_of(live)} == {'layer3', 'layer4'}
    assert not any('downsample' in key for key in states_of(live))


@pytest.mark.parametrize(
    ('riem', 'message'),
    [
        (dict(ration=0.2), 'riem: expected keys among representation, ratio.*found ration'),
        (dict(ratio=2), 'ratio: expected a number'),
        (dict(representation='svd'), "'svd' is not known"),
        (dict(include=['backbone.*']), 'matches none'),
    ],
)
def test_wrong_options(riem, message):
    with pytest.raises(RiemError, match=message):
        MODELS.build(dict(type='mmriem.RieMResNet', riem=riem, **RESNET))


def test_wrong_checkpoints(compressed):
    name, _, path = compressed
    settings = dict(type=f'mmriem.RieM{name}', riem=dict(checkpoint=str(path)), **STOCK[name][1])
    with pytest.raises(RiemError, match=r'backbone\.riem: does not fit the model of the config: missing'):
        MODELS.build(settings)
    settings['riem']['prefix'] = 'neck.'
    with pytest.raises(RiemError, match=r"expected keys that begin with 'neck\.', found those of backbone"):
        MODELS.build(settings)
