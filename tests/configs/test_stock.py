"""Configs of mmdet's wheel: narrowed, with random weights, compressed with both metrics, the same live and drop-in.

A few of them run always; `make test-configs` tries one of every folder.
"""

import runpy
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

MODULE = runpy.run_path(str(Path(__file__).parents[2] / 'tools/maintain/try_configs.py'))
FEW = ('solo', 'centernet', 'ld', 'fast_rcnn', 'soft_teacher')
"""Masks of one stage; floats and padding; a teacher; boxes from a file; a wrapper."""


ONNX_PACKAGES = ('onnx', 'onnxscript', 'onnxruntime')


def tried(folder, tmp_path, **checks):
    return MODULE['trial'](MODULE['stock_configs']()[folder], tmp_path, checks)


@pytest.mark.parametrize('folder', FEW)
def test_a_config_of_the_wheel_compresses_with_both_metrics_and_is_the_same_live(folder, tmp_path):
    row = tried(folder, tmp_path)
    assert row['pullback'].startswith('yes') and row['identity'] == 'yes', row
    assert row['live'] == 'yes', row


@pytest.mark.parametrize('folder', ['panoptic_fpn', 'masktrack_rcnn', 'mask2former_vis'])
def test_what_wants_masks_of_another_head_runs(folder):
    config = MODULE['narrowed'](MODULE['read_config'](MODULE['stock_configs']()[folder]))
    model = MODULE['trial'].__globals__['_random_detector'](config).eval()
    with torch.no_grad():
        outputs = MODULE['probe_class'](model)(config, 1).run(model, 0, 1)
    assert outputs and all(output.isfinite().all() for output in outputs)


def test_every_folder_is_known():
    folders = {path.name for path in MODULE['STOCK'].iterdir() if path.is_dir() and any(path.glob('*.py'))}
    assert set(MODULE['stock_configs']()) == folders - set(MODULE['NO_DETECTORS'])


@pytest.mark.configs
@pytest.mark.parametrize('folder', sorted(MODULE['stock_configs']()))
def test_a_folder_of_configs_compresses_or_says_in_one_line_why_not(folder, tmp_path):
    missing = [name for name in ONNX_PACKAGES if find_spec(name) is None]
    row = tried(folder, tmp_path, TTA=MODULE['tta'], **({} if missing else {'ONNX': MODULE['onnx']}))
    said = [value for key, value in row.items() if key in ('pullback', 'identity', 'live', 'why', 'TTA', 'ONNX')]
    assert said and not any('TRACEBACK' in value or '\n' in value for value in said), row
    assert all(value.startswith('yes') or ': ' in value for value in said), row
    if missing:
        pytest.skip(f'all but ONNX is as it should be; that needs {" and ".join(missing)}')


def test_the_page_names_each_reason_once():
    rows = [
        dict(
            folder='a',
            config='a.py',
            detector='A',
            weights='2 of 3',
            pullback='yes',
            identity='yes',
            live='yes',
            TTA='no: masks',
        ),
        dict(folder='b', config='b.py', why='no: /some/where/x.onnx: no | such'),
    ]
    page = MODULE['table'](rows)
    assert '| a | a.py | A | 2 of 3 | yes | yes | yes | not tried | [1](#reasons) |' in page
    assert '| b | b.py |  |  | [2](#reasons) |' in page
    assert page.count('ONNX: no / such') == 1 and '/some/where' not in page and '2. ONNX: no' in page
    assert MODULE['table'](MODULE['rows_of'](page)) == page and MODULE['rows_of']('') == []


def test_of_each_kind_the_smallest_and_the_last_weight_are_taken():
    elements = {'a.0.w': 600, 'a.1.w': 512, 'a.2.w': 700, 'b.w': 900, 'c.w': 10**6}
    assert MODULE['of_each_kind'](elements) == ('a.1.w', 'a.2.w', 'b.w')


def test_random_detectors_are_the_same_whatever_memory_holds():
    config = MODULE['narrowed'](MODULE['read_config'](MODULE['stock_configs']()['detr']))
    first, second = (MODULE['trial'].__globals__['_random_detector'](config).state_dict() for _ in range(2))
    assert all(first[name].isfinite().all() and first[name].equal(second[name]) for name in first)
