"""The tiny detector of `tests/conftest.py` with a wider neck and head, stock and RieM, and files of it."""

from pathlib import Path

import pytest

STOCK = """
_base_ = {base!r}
model = dict(
    neck=dict(out_channels=32),
    bbox_head=dict(in_channels=32, feat_channels=32),
)
"""
LIVE = """
_base_ = {base!r}
riem = dict(representation='bilinear', ratio=0.19)
model = dict(
    backbone=dict(type='mmriem.RieMResNet', riem=riem),
    neck=dict(type='mmriem.RieMFPN', riem=riem),
)
optim_wrapper = dict(optimizer=dict(lr=1e-4))
"""


@pytest.fixture(scope='session')
def stock_config(tiny_config, tmp_path_factory) -> Path:
    """A RetinaNet with layers wide enough for states."""
    path = tmp_path_factory.mktemp('stock') / 'stock.py'
    path.write_text(STOCK.format(base=str(tiny_config)))
    return path


@pytest.fixture(scope='session')
def live_config(stock_config, tmp_path_factory) -> Path:
    """`stock_config` with a RieM backbone and neck, and a smaller learning rate."""
    path = tmp_path_factory.mktemp('live') / 'live.py'
    path.write_text(LIVE.format(base=str(stock_config)))
    return path


@pytest.fixture(scope='session')
def trained(stock_config, tmp_path_factory) -> Path:
    """A checkpoint of the Runner for `stock_config`."""
    from mmengine.config import Config
    from mmengine.runner import Runner

    work_dir = tmp_path_factory.mktemp('trained_stock')
    config = Config.fromfile(stock_config)
    config.merge_from_dict(
        {
            'work_dir': str(work_dir),
            'experiment_name': 'trained_stock',
            'train_cfg.max_epochs': 16,
            'default_hooks.checkpoint.interval': 16,
            'log_level': 'WARNING',
        }
    )
    Runner.from_cfg(config).train()
    return work_dir / 'epoch_16.pth'


@pytest.fixture(scope='session')
def riem_files(stock_config, trained, tmp_path_factory) -> dict[str, Path]:
    """`trained` compressed whole, by representation; one block of the backbone stays dense."""
    from mmriem.core.pipeline.settings import Settings
    from mmriem.engine.compression import compress_detector
    from mmriem.engine.outputs import Outputs

    files = {}
    for name in ('bilinear', 'lattice', 'sigmoid'):
        outputs = Outputs(tmp_path_factory.mktemp(name) / f'{name}.riem')
        ratio = 0.15 if name == 'lattice' else 0.4  # of more bits its integers are too large for small steps
        settings = Settings.of(representation=name, ratio=ratio, exclude=('backbone.layer3.1.*',), effort=0.1)
        compress_detector(str(stock_config), str(trained), outputs, settings)
        files[name] = outputs.riem
    return files
