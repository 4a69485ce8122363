"""Every door of MMEngine and mmdet refuses a `.riem` file of another network."""

import copy
import runpy
import sys
from pathlib import Path
from unittest import mock

import mmdet
import pytest
import torch
from mmdet.apis import DetInferencer
from mmdet.apis import init_detector as mmdet_init_detector
from mmengine.config import Config, ConfigDict
from mmengine.registry import MODELS
from mmengine.runner import CheckpointLoader, Runner, load_checkpoint
from torch import nn

from mmriem.core.errors import RiemError
from mmriem.core.file import reading
from mmriem.engine.config import read_config
from mmriem.engine.detector import build_detector
from mmriem.engine.misfit import mark, origin, refuse_misfits

MISFIT = r'tiny\.riem: does not fit the model of the config: missing bbox_head\.cls_convs\.1\.conv\.weight'


@pytest.fixture
def other(tiny_config, tmp_path, request):
    """The tiny config with a head of one layer more, and a work dir and a name of its own; no hook that is strict."""
    config = Config.fromfile(tiny_config)
    config.model.bbox_head.stacked_convs = 2
    config.merge_from_dict(dict(work_dir=str(tmp_path / 'work'), experiment_name=request.node.name))
    config.dump(tmp_path / 'other.py')
    return tmp_path / 'other.py'


def by_init_detector(config, weights):
    mmdet_init_detector(str(config), str(weights), device='cpu')


def by_inferencer(config, weights):
    DetInferencer(str(config), str(weights), device='cpu', show_progress=False)


def by_load_from(config, weights):
    config = Config.fromfile(config)
    config.load_from = str(weights)
    Runner.from_cfg(config).test()


def by_load_from_in_training(config, weights):
    config = Config.fromfile(config)
    config.load_from = str(weights)
    Runner.from_cfg(config).train()


def by_load_checkpoint(config, weights):
    load_checkpoint(build_detector(read_config(config)), str(weights), map_location='cpu')


def by_pretrained(config, weights):
    config = read_config(config)
    config.model.init_cfg = dict(type='Pretrained', checkpoint=str(weights))
    build_detector(config).init_weights()


def by_ema(config, weights):
    config = Config.fromfile(config)
    config.load_from, config.custom_hooks = str(weights), [dict(type='EMAHook')]
    Runner.from_cfg(config).test()


def by_test_script_of_mmdet(config, weights):
    script = str(Path(mmdet.__file__).parent / '.mim' / 'tools' / 'test.py')
    with mock.patch.object(sys, 'argv', [script, str(config), str(weights)]):
        runpy.run_path(script, run_name='__main__')


DOORS = [
    by_init_detector,
    by_inferencer,
    by_load_from,
    by_load_from_in_training,
    by_load_checkpoint,
    by_pretrained,
    by_ema,
    by_test_script_of_mmdet,
]


@pytest.mark.parametrize('door', DOORS)
def test_another_network_is_refused(door, other, riem_file, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('LOCAL_RANK', '0')
    with pytest.raises(RiemError, match=MISFIT):
        door(other, riem_file)


@pytest.mark.parametrize('door', DOORS)
def test_the_right_network_passes(door, tiny_config, riem_file, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('LOCAL_RANK', '0')
    config = Config.fromfile(tiny_config)
    config.merge_from_dict(dict(work_dir=str(tmp_path / 'work'), experiment_name=f'right {door.__name__}'))
    config.dump(tmp_path / 'right.py')
    door(tmp_path / 'right.py', riem_file)


RESNET = dict(type='mmdet.ResNet', depth=18, base_channels=8, norm_eval=False)
SWIN = dict(
    type='mmdet.SwinTransformer', embed_dims=8, depths=(1, 1, 1, 1), num_heads=(1, 1, 1, 1), window_size=4, mlp_ratio=2
)
PVT = dict(type='mmdet.PyramidVisionTransformer', embed_dims=8, num_layers=(1, 1, 1, 1), pretrain_img_size=64)


@pytest.mark.parametrize('backbone', [{**RESNET, 'depth': 34}, {**RESNET, 'base_channels': 4}, SWIN, PVT])
@pytest.mark.parametrize('prefix', [None, 'backbone.'])
def test_pretrained_backbones_are_refused_however_they_read(backbone, prefix, riem_file):
    """Swin and PVT read their file themselves, by other ways than MMEngine's."""
    if prefix and backbone in (SWIN, PVT):
        pytest.skip('they know no prefix')
    start = dict(type='Pretrained', checkpoint=str(riem_file), **({'prefix': prefix} if prefix else {}))
    model = MODELS.build(ConfigDict(**backbone, init_cfg=start))
    with pytest.raises(RiemError, match=r'tiny\.riem: does not fit the model of the config'):
        model.init_weights()


def test_a_file_that_fits_is_loaded_once(tiny_config, riem_file):
    model = build_detector(read_config(tiny_config))
    times = []
    model.register_load_state_dict_post_hook(lambda *_: times.append(1))
    load_checkpoint(model, str(riem_file), map_location='cpu')
    decoded = reading.read(riem_file).decode()
    assert len(times) == 1
    assert all(torch.equal(tensor, decoded[name]) for name, tensor in model.state_dict().items())


def test_a_pretrained_part_that_fits(riem_file):
    start = dict(type='Pretrained', checkpoint=str(riem_file), prefix='backbone.')
    model = MODELS.build(ConfigDict(**RESNET, init_cfg=start))
    model.init_weights()
    decoded = reading.read(riem_file).decode()
    assert all(torch.equal(tensor, decoded[f'backbone.{name}']) for name, tensor in model.state_dict().items())


def test_a_module_of_torch_alone_is_refused_too(riem_file):
    with pytest.raises(RiemError, match='does not fit'):
        load_checkpoint(nn.Linear(4, 4), str(riem_file))


# ---- what is none of our business


def test_ordinary_checkpoints_load_as_mmengine_wrote_it(other, runner_checkpoint, tmp_path, capsys):
    model = build_detector(read_config(other))
    content = torch.load(runner_checkpoint, weights_only=False)
    torch.save({'state_dict': content['state_dict']}, tmp_path / 'plain.pth')
    load_checkpoint(model, str(tmp_path / 'plain.pth'), map_location='cpu')
    assert 'missing keys in source state_dict: bbox_head.cls_convs.1.conv.weight' in capsys.readouterr().out
    model.load_state_dict(content['state_dict'], strict=False)
    with pytest.raises(RuntimeError, match=r'Missing key\(s\)'):
        model.load_state_dict(content['state_dict'])


def test_what_a_program_puts_together_itself_loads_as_it_says(other, riem_file):
    model = build_detector(read_config(other))
    tensors = CheckpointLoader.load_checkpoint(str(riem_file), map_location='cpu')['state_dict']
    assert origin(tensors) == str(riem_file)
    mixed = {**model.state_dict(), **{name: x for name, x in tensors.items() if name.startswith('backbone.')}}
    assert origin(mixed) is None
    model.load_state_dict(mixed)
    model.load_state_dict({name: tensor.clone() for name, tensor in tensors.items()}, strict=False)


def test_the_mark_survives_a_copy_and_no_arithmetic():
    tensor = mark(torch.zeros(3), 'a.riem')
    assert origin({'a': tensor}) == origin(copy.deepcopy({'a': tensor})) == 'a.riem'
    assert origin({'a': tensor + 1}) is None and origin({}) is None
    assert origin({'a': tensor, 'b': mark(torch.zeros(3), 'b.riem')}) is None


def test_refusing_twice_wraps_once():
    import mmengine.runner.checkpoint as module

    before = module.load_state_dict
    refuse_misfits()
    assert module.load_state_dict is before and not hasattr(before.__wrapped__, '__wrapped__')
