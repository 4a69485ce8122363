"""Counts of a detector against MMEngine's own and against those of the core."""

from __future__ import annotations

import json

import pytest
from mmengine.analysis import FlopAnalyzer
from mmengine.config import Config

from mmriem.core.errors import RiemError
from mmriem.core.file.reading import read
from mmriem.engine.complexity import image_shape, measure_complexity, print_complexity
from mmriem.engine.config import read_config
from mmriem.engine.detector import build_detector


@pytest.fixture(scope='module')
def report(tiny_config, riem_file):
    return measure_complexity(read_config(tiny_config), riem_file, (60, 50), activation_bits=8)


def test_it_counts_what_mmengine_counts_for_products(tiny_config, report):
    model = build_detector(read_config(tiny_config)).eval()
    counted = FlopAnalyzer(model, model.data_preprocessor.mean.new_zeros(1, *report['input']))
    counted.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    assert report['input'] == [3, 64, 64]
    assert report['totals']['flops']['dense'] == counted.by_operator()['conv']
    by_module = counted.by_module_and_operator()
    for entry in report['weights']:
        assert entry['flops']['dense'] == by_module[entry['name'].removesuffix('.weight')]['conv']
    assert report['mmengine_flops'] == counted.total() > report['totals']['flops']['dense']
    assert report['mmengine_error'] is None and report['not_counted'] == []


def test_represented_weights_have_the_work_of_their_states(riem_file, report):
    records = {record.view.name: record for record in read(riem_file).weights}
    entries = {entry['name']: entry for entry in report['weights']}
    assert {name for name, entry in entries.items() if entry['representation'] == 'bilinear'} == set(records)
    name, record = next(iter(records.items()))
    (out, inputs), settings = record.view.matrix_shape, record.encoded.settings_json()
    assert entries[name]['flops']['regeneration'] == out * inputs * settings['rank']
    positions = entries[name]['flops']['dense'] // (out * inputs)
    assert entries[name]['flops']['matrix_free'] == positions * settings['rank'] * (out + inputs)
    assert entries[name]['bops']['product'] == entries[name]['flops']['dense'] * 32 * 8
    assert report['file_bytes'] == riem_file.stat().st_size > report['totals']['bytes'] / 4
    json.dumps(report)


def test_a_dense_checkpoint(tiny_config, runner_checkpoint, report):
    dense = measure_complexity(read_config(tiny_config), runner_checkpoint, (60, 50))
    assert {entry['representation'] for entry in dense['weights']} == {'dense'}
    assert dense['totals']['flops']['matrix_free'] == report['totals']['flops']['dense']
    assert dense['totals']['bytes'] == dense['totals']['bytes_fp32']


def test_the_table_has_every_weight_and_the_totals(report, capsys):
    print_complexity(report)
    printed = capsys.readouterr().out
    assert all(entry['name'] in printed for entry in report['weights'])
    assert f'{report["totals"]["flops"]["dense"] / 1e6:,.3f}' in printed and 'mmengine.analysis' in printed


def test_the_size_of_images_is_that_of_the_test_pipeline(tiny_config):
    assert image_shape(read_config(tiny_config)) == (64, 64)
    assert image_shape(Config(dict(test_pipeline=[dict(type='Resize', scale=(1333, 800))]))) == (800, 1333)


def test_the_tool_writes_the_report(call_here, tools, tiny_config, riem_file, tmp_path, capsys):
    arguments = (tiny_config, riem_file, '--shape', 32, '--out', tmp_path / 'x.json')
    assert call_here(tools / 'complexity.py', *arguments) is None
    found = json.loads((tmp_path / 'x.json').read_text())
    assert found['input'] == [3, 32, 32] and 'matrix-free' in capsys.readouterr().out
    said = call_here(tools / 'complexity.py', tiny_config, riem_file, '--shape', 32, 16, 8)
    assert said == 'error: --shape: expected a height and a width above 0, found 32 16 8'
    said = call_here(tools / 'complexity.py', tiny_config, riem_file, '--activation-bits', 0)
    assert said == 'error: --activation-bits: expected 1 to 64, found 0'


def test_a_config_of_another_model_is_refused(tiny_config, riem_file):
    config = read_config(tiny_config, {'model.neck.out_channels': 4})
    with pytest.raises(RiemError, match='does not fit'):
        measure_complexity(config, riem_file, (32, 32))
