"""The committed demo detectors: small, read without running code, and an exact fit of their configs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from mmdet.registry import MODELS
from mmdet.utils import register_all_modules
from mmengine.config import Config

from mmriem.datasets import CLASSES

ROOT = Path(__file__).parents[2]
NAMES = sorted(path.stem for path in (ROOT / 'configs/demo').glob('*.py'))


@pytest.fixture(scope='module', params=NAMES)
def demo(request) -> tuple[Config, Path]:
    register_all_modules()
    config = Config.fromfile(ROOT / f'configs/demo/{request.param}.py')
    return config, ROOT / f'demo/{request.param}.pth'


def test_a_resnet_and_a_swin_with_fpn():
    models = [Config.fromfile(ROOT / f'configs/demo/{name}.py').model for name in NAMES]
    assert {model.backbone.type for model in models} == {'ResNet', 'SwinTransformer'}
    assert {model.neck.type for model in models} == {'FPN'}


def test_checkpoint_is_small_half_precision_and_plain(demo):
    _, path = demo
    assert path.stat().st_size < 5_000_000
    content = torch.load(path, weights_only=True)
    assert set(content) == {'meta', 'state_dict'}
    assert content['meta']['dataset_meta']['classes'] == CLASSES
    assert {t.dtype for t in content['state_dict'].values()} <= {torch.float16, torch.int64}


def test_checkpoint_fits_its_config_exactly(demo):
    config, path = demo
    model = MODELS.build(config.model)
    state_dict = torch.load(path, weights_only=True)['state_dict']
    model.load_state_dict(state_dict, strict=True)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, state_dict[name].to(tensor.dtype)), name


def test_config_uses_the_demo_set_without_workers(demo):
    config, _ = demo
    assert config.default_scope == 'mmdet'
    for loader in (config.train_dataloader, config.val_dataloader, config.test_dataloader):
        assert loader.num_workers == 0 and not loader.persistent_workers
        assert loader.dataset.data_root == 'data/demo_digits/'
        assert tuple(loader.dataset.metainfo.classes) == CLASSES
