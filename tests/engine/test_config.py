import pytest
from mmengine.config import Config

from mmriem.core.errors import RiemError
from mmriem.engine.config import config_path, load_strictly, read_config


def test_path_with_options(tiny_config):
    config = read_config(tiny_config, {'model.backbone.depth': 34})
    assert config.model.backbone.depth == 34 and config.filename == str(tiny_config)


@pytest.mark.parametrize('suffix', ['.py', ''])
def test_stock_config(suffix):
    config = read_config(f'mmdet::retinanet/retinanet_r18_fpn_1x_coco{suffix}')
    assert config.model.type == 'RetinaNet' and config.model.backbone.depth == 18


@pytest.mark.parametrize(
    ('name', 'message'),
    [
        ('absent.py', 'no such config file'),
        (
            'mmdet::retinanet/retinanet_r18_fpn_1x_koko.py',
            r'did you mean mmdet::retinanet/retinanet_r18_fpn_1x_coco\.py',
        ),
        ('mmdet::zzz', 'the configs of mmdet are in'),
        ('mmabsent::a/b.py', 'mmabsent is not installed'),
        ('../odd::a/b.py', 'is not installed'),
    ],
)
def test_absent(name, message):
    with pytest.raises(RiemError, match=message):
        read_config(name)


@pytest.mark.parametrize(
    'text',
    [
        'model = dict(',
        'model = undefined',
        "_base_ = 'absent.py'",
        "custom_imports = dict(imports=['absent_module'])",
    ],
)
def test_config_that_fails(tmp_path, text):
    path = tmp_path / 'broken.py'
    path.write_text(text)
    with pytest.raises(RiemError, match=r'broken\.py: the config cannot be read \(\w+: .+\)$') as caught:
        read_config(path)
    assert '\n' not in str(caught.value)


def test_option_that_does_not_fit(tiny_config):
    with pytest.raises(RiemError, match='--cfg-options'):
        read_config(tiny_config, {'model.backbone.depth.x': 1})


def test_path_of_a_folder(tmp_path):
    with pytest.raises(RiemError, match='no such config file'):
        config_path(tmp_path)


@pytest.mark.parametrize('hooks', [{}, {'default_hooks': {'timer': {'type': 'IterTimerHook'}}}])
def test_strict_hook_joins_the_others(hooks):
    config = Config(hooks)
    load_strictly(config)
    load_strictly(config)
    assert config.default_hooks == {
        **hooks.get('default_hooks', {}),
        'strict_load': {'type': 'mmriem.StrictLoadHook'},
    }
