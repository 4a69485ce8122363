"""The configs of `configs/classification`: each builds, predicts, and tells the probe what it needs."""

from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DATASETS

from mmriem.engine.detector import build_detector
from mmriem.engine.probe import build_probe

FOLDER = Path(__file__).parents[2] / 'configs' / 'classification'
# million parameters, (width, height) of the probe's images, classes
EXPECTED = {
    'deit-small_imagenet': (22.05, [256, 256], 1000),
    'digits_lenet': (0.06, [28, 28], 10),
    'digits_vit': (0.14, [28, 28], 10),
    'lenet5_mnist': (0.06, [28, 28], 10),
    'mlp_mnist': (0.41, [28, 28], 10),
    'resnet18_cifar100': (11.22, [32, 32], 100),
    'resnet20_cifar10': (0.27, [32, 32], 10),
    'resnet50_cifar100': (23.71, [32, 32], 100),
    'resnet50_imagenet': (25.56, [256, 256], 1000),
    'resnet56_cifar10': (0.85, [32, 32], 10),
    'swin-small_cifar100': (None, [32, 32], 100),
    'swin-tiny_imagenet': (28.29, [256, 256], 1000),
    'timm_imagenet': (11.69, [256, 256], 1000),
    'vit-base_imagenet': (86.57, [256, 256], 1000),
    'vit-small_cifar100': (2.71, [32, 32], 100),
}


def test_all_are_tested():
    assert {path.stem for path in FOLDER.glob('*.py')} == set(EXPECTED)


@pytest.mark.parametrize('name', EXPECTED)
def test_it_builds_and_runs(name):
    if name.startswith('timm'):
        pytest.importorskip('timm', reason='timm is an optional extra: pip install timm')
    millions, size, classes = EXPECTED[name]
    config = Config.fromfile(FOLDER / f'{name}.py')
    model = build_detector(config).eval()
    if millions is not None:
        assert sum(x.numel() for x in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.005)
    probe = build_probe(config, model, count=1)
    assert probe.describe()['size'] == size
    with torch.no_grad():
        (logits,) = probe.run(model, 0, 1)
    assert logits.shape == (1, classes) and logits.isfinite().all()


@pytest.mark.parametrize('name', EXPECTED)
def test_its_parts_are_there(name):
    config = Config.fromfile(FOLDER / f'{name}.py')
    assert config.test_evaluator.type == 'mmriem.Accuracy' and config.default_scope == 'mmengine'
    for loader in ('test_dataloader', 'val_dataloader', 'train_dataloader'):
        if loader in config:
            dataset = DATASETS.build({**config[loader].dataset, 'lazy_init': True})
            assert dataset.split == {'train': 'train', 'val': 'test'}.get(loader[:-11], dataset.split)
