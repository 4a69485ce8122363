"""The configs of `configs/riem`."""

from pathlib import Path

import pytest
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope

from mmriem.core.live.states import WeightStates
from mmriem.engine.config import read_config

FOLDER = Path(__file__).parents[2] / 'configs' / 'riem'
STOCK = {
    'gfl_riem-r18_riem-fpn_digits': str(FOLDER.parent / 'demo' / 'gfl_r18_fpn_digits.py'),
    'retinanet_riem-r18_riem-fpn_1x_coco': 'mmdet::retinanet/retinanet_r18_fpn_1x_coco.py',
}


WHOLE = ('steps', 'integers', 'sigmoid', 'sigmoid-from-scratch')


def test_all_are_tested():
    whole = {f'gfl_riem_digits_{name}' for name in WHOLE}
    assert {path.stem for path in FOLDER.glob('*.py')} == set(STOCK) | whole | {'finetune_table'}


@pytest.mark.parametrize('name', WHOLE)
def test_a_detector_that_holds_states_as_a_whole(name):
    """Its states have another rate of learning than the rest."""
    config = Config.fromfile(FOLDER / f'gfl_riem_digits_{name}.py')
    init_default_scope(config.default_scope)
    detector = MODELS.build(config.model)
    held = {
        parameter
        for module in detector.modules()
        if isinstance(module, WeightStates)
        for parameter in module.parameters()
    }
    optimizer = build_optim_wrapper(detector, config.optim_wrapper).optimizer
    factors = {'steps': 0.3, 'integers': 15, 'sigmoid': 0.1, 'sigmoid-from-scratch': 1}
    for group in optimizer.param_groups:
        factor = factors[name] if group['params'][0] in held else 1
        assert group['lr'] == pytest.approx(factor * optimizer.defaults['lr'])
    assert len(held) > 20
    assert str(config.model.type) == 'mmriem.RieMGFL' and isinstance(detector, MODELS.get('GFL'))


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
