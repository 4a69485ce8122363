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
    from mmriem.core.pipeline.settings import Settings
    from mmriem.engine.compression import compress_detector
    from mmriem.engine.outputs import Outputs

    outputs = Outputs(tmp_path_factory.mktemp('written') / 'tiny.riem')
    compress_detector(str(tiny_config), str(runner_checkpoint), outputs, Settings.of(bits=6.0), metric='identity')
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


PADDED = """
_base_ = {base!r}
pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(64, 64), keep_ratio=True),
    dict(type='Pad', size=(96, 64)),
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
]
test_dataloader = dict(dataset=dict(pipeline=pipeline))
"""


def test_augmented_where_the_pipeline_pads(call_here, tools, written, tmp_path):
    """A box of the mirror image must come back to where it was, though the padding is at the right."""
    (tmp_path / 'padded.py').write_text(PADDED.format(base=str(written)))
    found = []
    for flags in ([], ['--tta']):
        work_dir = tmp_path / f'work{len(flags)}'
        named = ['--cfg-options', f'experiment_name=padded{len(flags)}']
        arguments = ['padded.py', written.with_suffix('.riem'), '--work-dir', work_dir, *flags, *named]
        assert call_here(tools / 'test.py', *arguments) is None
        found.append(ap(work_dir)['coco/bbox_mAP'])
    assert found[0] > 0.3 and found[1] > 0.9 * found[0]


def test_masks_are_not_augmented(call_here, tools, riem_file):
    error = call_here(tools / 'test.py', 'mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py', riem_file, '--tta')
    assert 'found one of masks; evaluate it without --tta' in error
