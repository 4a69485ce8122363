"""Evaluation with mmdet's own programs, as they come in its wheel, of the config that tools/compress.py writes."""

from __future__ import annotations

import ast
import json
from importlib.util import find_spec
from pathlib import Path

import pytest

STOCK = Path(find_spec('mmdet').origin).parent / '.mim' / 'tools'


@pytest.fixture(scope='module')
def written(tiny_config, runner_checkpoint, tmp_path_factory) -> Path:
    """The config of a compressed tiny detector; the file lies beside it."""
    from mmriem.core.compress import Settings
    from mmriem.engine.compression import Outputs, compress_detector

    outputs = Outputs(tmp_path_factory.mktemp('written') / 'tiny.riem')
    compress_detector(str(tiny_config), str(runner_checkpoint), outputs, Settings(bits=6.0), metric='identity')
    return outputs.config


def ap(work_dir: Path) -> dict[str, float]:
    """What the last evaluation under a work dir wrote."""
    return json.loads(sorted(work_dir.glob('*/*.json'))[-1].read_text().splitlines()[-1])


def test_stock_test_and_offline_evaluation(call, written, coco_data, tmp_path):
    found, pickle = tmp_path / 'work', tmp_path / 'found.pkl'
    riem = written.with_suffix('.riem')
    done = call(STOCK / 'test.py', written, riem, '--work-dir', found, '--out', pickle, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert ap(found)['coco/bbox_mAP'] > 0.3
    evaluator = ['val_evaluator.type=CocoMetric', f'val_evaluator.ann_file={coco_data}/annotations.json']
    done = call(STOCK / 'analysis_tools' / 'eval_metric.py', written, pickle, '--cfg-options', *evaluator, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    offline = ast.literal_eval(next(line for line in done.stdout.splitlines() if line.startswith("{'coco")))
    assert offline == {key: value for key, value in ap(found).items() if key in offline}


def test_augmented(call_here, tools, written, tmp_path):
    assert (
        call_here(tools / 'test.py', written, written.with_suffix('.riem'), '--tta', '--work-dir', tmp_path / 'tta')
        is None
    )
    assert ap(tmp_path / 'tta')['coco/bbox_mAP'] > 0.3
