"""The steps of a test pipeline, without what reads files."""

import math

import numpy as np
import pytest
from mmcv.transforms import BaseTransform, LoadImageFromFile
from mmdet.datasets.transforms import PackDetInputs
from mmdet.registry import TRANSFORMS
from mmengine.config import Config
from mmengine.registry import init_default_scope

from mmriem.core.errors import RiemError
from mmriem.engine.pipeline import Pipeline, inner_test_set, input_size, pipeline_steps, resized, type_name

META = ('img_id', 'img_path', 'ori_shape', 'img_shape')
PACK = dict(type='PackDetInputs', meta_keys=META)


@TRANSFORMS.register_module()
class LoadFrame(BaseTransform):
    """A loader of somebody's own."""

    def transform(self, results):
        results['img'] = np.load(results['img_path'])
        results['img_shape'] = results['ori_shape'] = results['img'].shape[:2]
        return results


@TRANSFORMS.register_module()
class ReadTiff(LoadImageFromFile):
    """One whose name does not tell."""


@TRANSFORMS.register_module()
class Rejects(BaseTransform):
    def transform(self, results):
        return None


@TRANSFORMS.register_module()
class Fails(BaseTransform):
    def transform(self, results):
        return results['nothing of that name']


@pytest.fixture(autouse=True)
def scope():
    init_default_scope('mmdet')


def image(*shape):
    return np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)


def packed(steps, picture, **options):
    pipeline = Pipeline(steps, **options)
    return pipeline(pipeline.sample(picture, 0, 'a file'))


@pytest.mark.parametrize(
    'loader',
    [
        dict(type='LoadImageFromFile'),
        dict(type='mmcv.LoadImageFromFile'),
        dict(type=LoadImageFromFile),
        dict(type='LoadMultiChannelImageFromFiles'),
        dict(type='LoadImageFromNDArray'),
        dict(type='ReadTiff'),
    ],
    ids=lambda loader: type_name(loader),
)
def test_what_reads_images_is_left_out(loader):
    picture = image(6, 8, 3)
    annotations = [dict(type='LoadAnnotations', with_bbox=True), dict(type='LoadPanopticAnnotations')]
    found = packed([loader, *annotations[:1], PACK], picture)
    assert np.array_equal(found['inputs'].permute(1, 2, 0).numpy(), picture)
    assert found['data_samples'].img_shape == (6, 8)


def test_images_are_given_as_the_loader_would():
    picture = image(4, 5, 3)

    def given(**loader):
        return Pipeline([dict(type='LoadImageFromFile', **loader), PACK]).sample(picture, 0)['img']

    assert given().dtype == np.uint8 and given(to_float32=True).dtype == np.float32
    assert np.array_equal(given(channel_order='rgb'), picture[..., ::-1])
    assert given(color_type='grayscale').shape == (4, 5)


def test_a_loader_of_an_unknown_kind_is_named_or_reads_the_file_itself(tmp_path):
    steps = [dict(type='LoadFrame'), PACK]
    with pytest.raises(RiemError, match=r'found LoadFrame, .* --images DIR, or use --metric identity'):
        Pipeline(steps)
    np.save(tmp_path / 'a.npy', image(3, 4, 5))
    pipeline = Pipeline(steps, with_files=True)
    found = pipeline(pipeline.sample(np.zeros((1, 1, 5), np.uint8), 0, str(tmp_path / 'a.npy')))
    assert pipeline.reads_files and tuple(found['inputs'].shape) == (5, 3, 4)


@pytest.mark.parametrize(
    ('step', 'message'),
    [
        (dict(type='Fails'), r'step 1, Fails, to run on an image, found KeyError: .* use --metric identity'),
        (dict(type='Rejects'), r'expected step 1, Rejects, to keep the image, found that it rejects it'),
        (dict(type='Resize', scales=3), r'step 1, Resize, .* found TypeError: .*scales'),
        (dict(type='NoSuchStep'), r'step 1, NoSuchStep, .* found KeyError'),
    ],
    ids=lambda value: type_name(value) if isinstance(value, dict) else '',
)
def test_a_step_that_fails_is_named(step, message):
    with pytest.raises(RiemError, match=message) as caught:
        packed([dict(type='LoadImageFromFile'), step, PACK], image(4, 4, 3))
    assert '\n' not in str(caught.value)


def test_steps_of_videos_run_on_one_frame():
    inner = [dict(type='LoadImageFromFile'), dict(type='Resize', scale=(8, 6)), dict(type='LoadTrackAnnotations')]
    steps = [dict(type='TransformBroadcaster', transforms=inner), dict(type='PackTrackInputs')]
    assert input_size(steps) == (8, 6) and input_size(resized(steps, (4, 2))) == (4, 2)
    found = packed(resized(steps, (4, 2)), image(12, 16, 3))
    assert Pipeline(steps).is_video and tuple(found['inputs'].shape) == (1, 3, 2, 4)
    assert found['data_samples'][0].frame_id == 0


def test_proposals_of_a_file_are_random_boxes_within_the_image():
    steps = [
        dict(type='LoadImageFromFile'),
        dict(type='LoadProposals', num_max_proposals=None),
        dict(type='ProposalBroadcaster', transforms=[dict(type='Resize', scale=(32, 16), keep_ratio=False)]),
        dict(type='PackDetInputs', meta_keys=META),
    ]
    boxes = packed(steps, image(8, 8, 3))['data_samples'].proposals.bboxes
    assert len(boxes) == 300 and (boxes.min(0).values >= 0).all()
    assert boxes[:, 2].max() <= 32 and boxes[:, 2].max() > 16 and boxes[:, 3].max() <= 16


def test_the_first_of_several_test_loaders_counts():
    steps = [dict(type='Resize', scale=(48, 32))]
    config = Config(dict(test_dataloader=[dict(dataset=dict(type='A', pipeline=steps)), dict(dataset=dict(type='B'))]))
    assert inner_test_set(config)['type'] == 'A' and input_size(pipeline_steps(config)) == (48, 32)


def test_a_side_without_a_bound_is_as_long_as_images_are():
    assert input_size([dict(type='Resize', scale=(math.inf, 96))]) == (128, 96)
    assert input_size([dict(type='Resize', scale=(math.inf, math.inf))]) is None
    assert input_size([dict(type='Resize', scale=(96, 1e9), keep_ratio=True)]) == (96, 128)
    assert input_size([dict(type='Resize', scale=(10**9, 96), keep_ratio=True)]) == (128, 96)
    assert input_size([dict(type='Resize', scale=(1600, 400))]) == (1600, 400)


def test_classes_are_steps_as_names_are():
    steps = [dict(type=LoadImageFromFile), dict(type=PackDetInputs, meta_keys=META)]
    assert [type_name(step) for step in steps] == ['LoadImageFromFile', 'PackDetInputs']
    assert packed(steps, image(4, 4, 3))['inputs'].shape == (3, 4, 4)


@pytest.mark.parametrize('wrap', [lambda s: dict(dataset=s), lambda s: dict(datasets=[s, s])])
def test_sets_in_wrappers(wrap):
    inner = dict(type='CocoDataset', pipeline=[dict(type='Resize', scale=8)], metainfo=dict(classes=('a',)))
    config = Config(
        dict(test_dataloader=dict(dataset=dict(type='W', pipeline=[PACK], **wrap(dict(type='V', **wrap(inner))))))
    )
    assert [type_name(step) for step in pipeline_steps(config)] == ['Resize', 'PackDetInputs']
    assert inner_test_set(config)['metainfo'] == dict(classes=('a',))
