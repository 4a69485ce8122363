"""Seeds, split and baseline of the paper's protocol on a detector of eight channels."""

from __future__ import annotations

import json
import statistics
from dataclasses import replace
from pathlib import Path

import pytest
from mmengine.config import Config
from torch import nn

from mmriem.benchmark.protocol import RESULTS, Protocol, matched_dmu, run_protocol, split, table
from mmriem.core.errors import RiemError
from mmriem.core.file.reading import read
from mmriem.core.pipeline.settings import Settings
from mmriem.engine.config import read_config

PROTOCOL = Protocol('svd', 6.0, seeds=2, keep=1, effort=0.1, development=0.5)


@pytest.fixture(scope='module')
def finished(tiny_config, runner_checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp('protocol')
    said = []
    found = run_protocol(read_config(tiny_config), runner_checkpoint, PROTOCOL, folder, say=said.append)
    return folder, found, said


def test_the_best_seed_on_the_development_set_is_the_one_that_is_tested(finished):
    folder, found, said = finished
    seeds = [found[f'seed {seed}'] for seed in range(2)]
    assert found['kept'] == [max(range(2), key=lambda seed: seeds[seed]['development'])]
    assert [key for key in found if key.startswith('test of')] == [f'test of seed {found["kept"][0]}']
    assert found['measure'] == 'coco/bbox_mAP' and len(said) == 2
    assert json.loads((folder / RESULTS).read_text()) == json.loads(json.dumps(found))


def test_files_are_no_larger_than_that_of_the_baseline(finished):
    folder, found, _ = finished
    assert found['baseline']['bytes'] == (folder / 'svd.safetensors').stat().st_size
    for seed in range(2):
        size = (folder / f'seed_{seed}.riem').stat().st_size
        assert 0.9 * found['baseline']['bytes'] < found[f'seed {seed}']['bytes'] == size <= found['baseline']['bytes']
    settings = [record.encoded.settings_json() for record in read(folder / 'seed_0.riem').weights]
    assert {setting['state_bits'] for setting in settings} == {8}
    assert {setting['dmu'] for setting in settings} == {found['dmu']}
    assert (folder / 'seed_0.riem').read_bytes() != (folder / 'seed_1.riem').read_bytes()


def test_the_table(finished):
    _, found, _ = finished
    lines = table(found).splitlines()
    assert len(lines) == 5 and lines[4].count('± 0.00') == 2
    assert f'| {found["original"]["test"]:.2f} |' in lines[2]
    three = {**found, 'kept': [0, 1], 'test of seed 0': 10.0, 'test of seed 1': 20.0}
    assert f'15.00 ± {statistics.stdev([10, 20]):.2f}' in table(three)


def test_finished_seeds_are_kept(finished, tiny_config, runner_checkpoint):
    folder, found, _ = finished
    before = {path.name: path.stat().st_mtime_ns for path in folder.glob('seed_*')}
    partly = {key: value for key, value in found.items() if key not in ('seed 1', 'kept')}
    (folder / RESULTS).write_text(json.dumps(partly))
    again = run_protocol(read_config(tiny_config), runner_checkpoint, PROTOCOL, folder)
    assert again['seed 1'] == found['seed 1'] and again['kept'] == found['kept']
    after = {path.name: path.stat().st_mtime_ns for path in folder.glob('seed_*')}
    assert after['seed_0.riem'] == before['seed_0.riem'] and after['seed_1.riem'] > before['seed_1.riem']


def test_results_of_something_else_are_refused(finished, tiny_config, runner_checkpoint):
    with pytest.raises(RiemError, match='results of the same effort'):
        run_protocol(read_config(tiny_config), runner_checkpoint, replace(PROTOCOL, effort=0.2), finished[0])


# ---- the split ----


def test_every_second_image_of_a_coco_set_chooses(tiny_config, coco_data, tmp_path):
    parts = split(read_config(tiny_config), 0.5, tmp_path)
    told = [json.loads(Path(part.test_evaluator.ann_file).read_text()) for part in (parts.development, parts.test)]
    assert [[image['id'] for image in part['images']] for part in told] == [[0, 2], [1]]
    assert [{box['image_id'] for box in part['annotations']} for part in told] == [{0, 2}, {1}]
    assert parts.development.test_dataloader.dataset.ann_file == parts.development.test_evaluator.ann_file
    assert parts.description == '1 of 2 of 3 images of the test set, 2, chooses'
    assert read_config(tiny_config).test_dataloader.dataset.ann_file == 'annotations.json'


def test_numbers_of_images_where_no_annotation_file_is_read(tmp_path):
    evaluator, loop = dict(type='Accuracy'), dict(type='TestLoop')
    loader = dict(dataset=dict(type='Any', indices=[9, 8, 7, 6, 5, 4, 3]))
    parts = split(Config(dict(test_dataloader=loader, test_evaluator=evaluator, test_cfg=loop)), 1 / 3, tmp_path)
    assert parts.development.test_dataloader.dataset.indices == [9, 6, 3]
    assert parts.test.test_dataloader.dataset.indices == [8, 7, 5, 4]
    loader['dataset']['indices'] = 100
    config = Config(dict(test_dataloader=loader, test_evaluator=evaluator, test_cfg=loop))
    parts = split(config, 0.5, tmp_path, images=4)
    assert parts.development.test_dataloader.dataset.indices == [0, 50]
    assert parts.test.test_dataloader.dataset.indices == [25, 75]


def test_a_validation_set_of_its_own_chooses(tiny_config, tmp_path):
    config = read_config(tiny_config)
    config.val_dataloader = {**config.test_dataloader, 'dataset': {**config.test_dataloader.dataset, 'ann_file': 'x'}}
    config.val_evaluator = dict(type='CocoMetric', ann_file='x')
    parts = split(config, 0.5, tmp_path)
    assert parts.development.test_dataloader.dataset.ann_file == parts.development.test_evaluator.ann_file == 'x'
    assert parts.test.test_dataloader.dataset.ann_file == 'annotations.json'
    assert parts.description == "the config's own validation set"


def test_a_config_without_a_test_set_is_refused(tmp_path):
    with pytest.raises(RiemError, match='expected test_dataloader, found none'):
        split(Config(), 0.2, tmp_path)


# ---- the match ----


def test_dmu_is_the_largest_within_the_flops():
    model = nn.Sequential(nn.Linear(128, 96), nn.ReLU(), nn.Linear(96, 64))
    bits = 4 * (128 * 96 + 96 * 64)
    dmu, making = matched_dmu(model, bits, 3 * 10**6)
    assert dmu % 2 == 0 and making <= 3 * 10**6 < matched_dmu(model, bits, 10**9)[1]
    assert matched_dmu(model, bits, making) == (dmu, making)
    assert matched_dmu(model, bits, making - 1)[0] == dmu - 2
    assert matched_dmu(model, bits, 0)[0] == 2


@pytest.mark.parametrize(
    ('wrong', 'said'),
    [
        (dict(baseline='hqq'), 'baseline: expected svd or minmax'),
        (dict(baseline='minmax', bits=2.5), 'whole for minmax'),
        (dict(bits=0), 'baseline bits'),
        (dict(keep=3), 'keep: expected 1 to 2'),
        (dict(development=1.0), 'development'),
        (dict(images=1), 'images: expected 0'),
    ],
)
def test_wrong_numbers_are_refused(wrong, said):
    with pytest.raises(RiemError, match=said):
        replace(PROTOCOL, **wrong)


def test_dmu_of_settings():
    assert Settings.of(representation='sigmoid', dmu=6).fit.fitter.dmu == 6
    with pytest.raises(RiemError, match='dmu: expected 0'):
        Settings.of(representation='sigmoid', dmu=-1)


# ---- the tool ----


def test_the_tool_prints_and_writes_the_table(finished, call_here, tools, tiny_config, runner_checkpoint, capsys):
    folder, found, _ = finished
    arguments = [tiny_config, runner_checkpoint, '--baseline-bits', 6, '--seeds', 2, '--keep', 1, '--effort', 0.1]
    arguments += ['--development', 0.5, '--work-dir', folder]
    assert call_here(tools / 'measure' / 'paper_protocol.py', *arguments) is None
    assert table(found) in capsys.readouterr().out
    assert (folder / 'protocol.md').read_text().endswith(table(found))
    said = call_here(tools / 'measure' / 'paper_protocol.py', tiny_config, runner_checkpoint, '--keep', 11)
    assert said == 'error: keep: expected 1 to 10, the number of seeds, found 11'
