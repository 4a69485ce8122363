"""Test-time augmentation of configs of all kinds."""

import pytest
from mmcv.transforms import LoadImageFromFile
from mmdet.datasets.transforms import PackDetInputs
from mmengine.config import Config

from mmriem.cli.test import augment
from mmriem.core.errors import RiemError
from mmriem.engine.config import read_config
from mmriem.engine.pipeline import type_name

STEPS = [dict(type='LoadImageFromFile'), dict(type='Pad', size_divisor=32), dict(type='PackDetInputs')]


def config(dataset, metric='bbox', model=None):
    evaluator = dict(type='CocoMetric', metric=metric)
    return Config(dict(model=model or dict(type='X'), test_evaluator=evaluator, test_dataloader=dict(dataset=dataset)))


def names(steps):
    return [type_name(step) for step in steps]


@pytest.mark.parametrize('wrap', [lambda s: dict(dataset=s), lambda s: dict(datasets=[s, s])])
def test_every_set_in_a_wrapper_has_the_augmented_steps(wrap):
    inner = dict(type='CocoDataset', pipeline=STEPS)
    augmented = config(dict(type='W', pipeline=[], **wrap(inner)))
    augment(augmented)
    dataset = augmented.test_dataloader.dataset
    assert 'pipeline' not in dataset
    for each in dataset.get('datasets', [dataset.get('dataset')]):
        assert names(each.pipeline) == ['LoadImageFromFile', 'TestTimeAug']
    flips, padding, packing = augmented.tta_pipeline[-1].transforms
    assert (
        [flip.prob for flip in flips] == [1.0, 0.0]
        and names(padding) == ['Pad']
        and names(packing) == ['PackDetInputs']
    )
    assert augmented.model.type == 'DetTTAModel' and augmented.model.module.type == 'X'


def test_steps_may_be_classes():
    steps = [dict(type=LoadImageFromFile), dict(type=PackDetInputs)]
    augmented = config(dict(type='CocoDataset', pipeline=steps))
    augment(augmented)
    assert names(augmented.tta_pipeline) == ['LoadImageFromFile', 'TestTimeAug']


@pytest.mark.parametrize(
    'name',
    [
        'mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py',
        'rtmdet/rtmdet-ins_tiny_8xb32-300e_coco.py',
        'mask2former/mask2former_r50_8xb2-lsj-50e_coco.py',
        'mask2former/mask2former_r50_8xb2-lsj-50e_coco-panoptic.py',
        'solo/solo_r50_fpn_1x_coco.py',
    ],
)
def test_masks_are_refused(name):
    with pytest.raises(RiemError, match='--tta: expected a detector of boxes, found one of masks'):
        augment(read_config(f'mmdet::{name}'))


def test_videos_are_refused():
    steps = [dict(type='TransformBroadcaster', transforms=STEPS[:2]), dict(type='PackTrackInputs')]
    with pytest.raises(RiemError, match='--tta: expected a detector of images, found one of videos'):
        augment(config(dict(type='MOTChallengeDataset', pipeline=steps)))
