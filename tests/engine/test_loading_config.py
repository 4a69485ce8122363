"""The written config: literals alone, whatever names and values there are."""

import ast
import os

import pytest
from mmengine.config import Config

from mmriem.core.errors import RiemError
from mmriem.engine.config import read_config
from mmriem.engine.loading_config import LoadingConfig, literal

NAMES = [
    "bob's.riem",
    'two "quotes".riem',
    "' + __import__('os').system('touch ran') + '.riem",
    '{{ fileDirname }}.riem',
    '{{$HOME:x}}.riem',
    '{{ _base_.model }} {x} %s $HOME <b>.riem',
    'back\\slash.riem',
    'line\nbreak.riem',
    'ümläut 日本.riem',
]
FOLDERS = ["bob's folder", 'two "quotes"', 'a {{ fileBasename }} b', "' + 1 + '", 'plain']


def written(tmp_path, values, name='x.riem', folder='out'):
    (tmp_path / folder).mkdir()
    path = tmp_path / folder / 'loading.py'
    LoadingConfig(Config(values), name).write(path)
    return path


def literals(path):
    """The values of all assignments but the first, read without running anything."""
    first, *others = ast.parse(path.read_text()).body
    assert first.targets[0].id == 'load_from'
    return {statement.targets[0].id: statement.value for statement in others}


@pytest.mark.parametrize('name', NAMES)
def test_a_name_is_a_name_whatever_is_in_it(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    path = written(tmp_path, {'model': dict(type='X', classes=(name, 'b'))}, name)
    read = read_config(path)
    assert read.load_from == str(path.parent / name) and read.model.classes == (name, 'b')
    assert not (tmp_path / 'ran').exists() and sorted(os.listdir(path.parent)) == ['loading.py']


@pytest.mark.parametrize('folder', FOLDERS)
def test_the_file_is_looked_for_beside_the_config_whatever_the_folder(tmp_path, folder):
    path = written(tmp_path, {'model': dict(type='X')}, folder=folder)
    assert read_config(path).load_from == str(path.parent / 'x.riem')
    moved = path.parent.rename(tmp_path / 'moved')
    assert read_config(moved / 'loading.py').load_from == str(moved / 'x.riem')
    (tmp_path / 'child.py').write_text("_base_ = 'moved/loading.py'\n")
    assert read_config(tmp_path / 'child.py').load_from == str(moved / 'x.riem')


def test_values_come_back_as_they_were(tmp_path):
    values = dict(
        top=float('inf'),
        low=-float('inf'),
        numbers=[1, 2.5, -3, 1e-9, True, None, 2j],
        nested=dict(a=(1,), b=(), c=[], d={}, e={1: 'one', 'two': 2}, f='x' * 300, g={3}),
        words='a\tb\n"\'\\ {{ fileDirname }} }}',
        data=b'\x00\xff',
    )
    path = written(tmp_path, values)
    read = read_config(path).to_dict()
    for key, value in values.items():
        assert read[key] == value and type(read[key]) is type(value)
    for value in literals(path).values():
        assert all(
            isinstance(node, (ast.expr, ast.expr_context, ast.operator, ast.unaryop)) for node in ast.walk(value)
        )
        assert not any(isinstance(node, (ast.Call, ast.Name, ast.Attribute)) for node in ast.walk(value))
    assert max(map(len, path.read_text().splitlines())) < 400


def test_nan_comes_back_as_nan(tmp_path):
    value = read_config(written(tmp_path, dict(unknown=[float('nan')]))).unknown[0]
    assert value != value


def test_keys_that_are_no_names_and_default_hooks_of_none(tmp_path):
    read = read_config(written(tmp_path, {'my-key': 1, 'class': 2, 'default_hooks': None})).to_dict()
    assert read['my-key'] == 1 and read['class'] == 2
    assert read['default_hooks'] == {'strict_load': {'type': 'mmriem.StrictLoadHook'}}


def test_what_loads_the_file_is_added_and_downloads_go(tmp_path):
    start = dict(type='Pretrained', checkpoint='torchvision://resnet50')
    values = dict(
        custom_imports=dict(imports='json'),
        load_from='elsewhere.pth',
        work_dir='w',
        model=dict(
            type='X',
            pretrained='open-mmlab://x',
            init_cfg=start,
            backbone=dict(init_cfg=[start, dict(type='Kaiming')]),
            neck=dict(init_cfg=[dict(type='mmengine.model.PretrainedInit', checkpoint='y.pth')]),
        ),
    )
    read = read_config(written(tmp_path, values))
    assert read.custom_imports == dict(imports=['json', 'mmriem.engine'], allow_failed_imports=False)
    assert read.load_from.endswith('x.riem') and 'work_dir' not in read and read.resume is False
    assert read.default_scope == 'mmdet'
    assert read.model.pretrained is None and read.model.init_cfg is None and read.model.neck.init_cfg is None
    assert read.model.backbone.init_cfg == [dict(type='Kaiming')]


def test_classes_are_written_by_their_path(tmp_path):
    from mmdet.models import RetinaNet

    assert read_config(written(tmp_path, dict(model=dict(type=RetinaNet)))).model.type == (
        'mmdet.models.detectors.retinanet.RetinaNet'
    )


@pytest.mark.parametrize(
    ('values', 'message'),
    [
        (
            dict(train=dict(steps=[lambda x: x])),
            r'config: expected values at train\.steps\.0 .* found the function .*lambda',
        ),
        (dict(model=dict(type=lambda: 0)), r'at model\.type .* found the function'),
        (dict(dtype=object()), r'at dtype .* found a value of type object'),
    ],
)
def test_values_that_cannot_be_written_are_one_error_before_the_work_begins(values, message):
    with pytest.raises(RiemError, match=message):
        LoadingConfig(Config(values), 'x.riem')


def test_literals_are_read_by_the_parser_of_literals():
    value = {'a': [1, (2.0, None)], 'b': {'c': 'x' * 150, 'd': {'e': '{{'}}, 'f': {1, 2}}
    assert ast.literal_eval(literal(value)) == value
