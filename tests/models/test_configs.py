"""The configs of `configs/riem`."""

from pathlib import Path

import pytest
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope

from mmriem.core.live import WeightStates
from mmriem.engine.config import read_config

FOLDER = Path(__file__).parents[2] / 'configs' / 'riem'
STOCK = {
    'gfl_riem-r18_riem-fpn_digits': str(FOLDER.parent / 'demo' / 'gfl_r18_fpn_digits.py'),
    'retinanet_riem-r18_riem-fpn_1x_coco': 'mmdet::retinanet/retinanet_r18_fpn_1x_coco.py',
}


def test_all_are_tested():
    assert {path.stem for path in FOLDER.glob('*.py')} == set(STOCK)


@pytest.mark.parametrize('name', STOCK)
def test_a_stock_detector_with_states(name):
    config, stock = Config.fromfile(FOLDER / f'{name}.py'), read_config(STOCK[name])
    assert config.default_scope == 'mmdet'
    for part, stock_type in (('backbone', 'ResNet'), ('neck', 'FPN')):
        settings = config.model[part]
        assert settings.pop('type') == f'mmriem.RieM{stock_type}'
        assert stock.model[part].pop('type') == stock_type
        assert settings.pop('riem') == dict(representation='sigmoid', ratio=0.19)
        stock.model[part].pop('init_cfg', None)
        settings.pop('init_cfg', None)
    config.model.pop('_scope_', None)  # of a base in another package
    assert config.model == stock.model
    assert config.test_evaluator.ann_file == stock.test_evaluator.ann_file


@pytest.mark.parametrize('name', STOCK)
def test_it_builds(name):
    """With `bilinear` states, which are faster to draw."""
    config = Config.fromfile(FOLDER / f'{name}.py')
    for part in ('backbone', 'neck'):
        config.model[part].riem.representation = 'bilinear'
    init_default_scope(config.default_scope)
    detector = MODELS.build(config.model)
    for part in (detector.backbone, detector.neck):
        assert sum(isinstance(module, WeightStates) for module in part.modules()) >= 6
    assert not any(isinstance(module, WeightStates) for module in detector.bbox_head.modules())
