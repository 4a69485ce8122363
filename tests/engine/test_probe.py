"""Images for a detector through its own test pipeline, and what its heads say of them."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from torch import nn

from mmriem.core.errors import RiemError
from mmriem.core.images.procedural import PLAIN, procedural_images
from mmriem.core.images.style_search import DEFAULT, distance
from mmriem.core.metric.pullback import collect
from mmriem.core.weights.views import find_weights
from mmriem.engine import read_checkpoint
from mmriem.engine.checkpoint import load_into
from mmriem.engine.config import read_config
from mmriem.engine.detector import build_detector
from mmriem.engine.probe import (
    COUNTS,
    FALLBACK_SIZE,
    MASKS,
    MAX_PIXELS,
    DetectorProbe,
    OutputProbe,
    build_probe,
    input_size,
)

ROOT = Path(__file__).parents[2]


def pipeline(*steps):
    """A config with these steps between reading and packing."""
    meta = ('img_id', 'img_path', 'ori_shape', 'img_shape')
    every = [dict(type='LoadImageFromFile'), *steps, dict(type='PackDetInputs', meta_keys=meta)]
    return Config(dict(test_dataloader=dict(dataset=dict(pipeline=every))))


class Head(nn.Module):
    """Says the mean of each image, among other things."""

    def __init__(self, inner=None):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.extra_head = inner

    def forward(self, x):
        if self.extra_head is not None:
            self.extra_head(x)
        scores = self.weight * x.mean((2, 3))
        return {'scores': [scores], 'labels': scores.argmax(1), 'none': scores[:0], 'boxes': (scores * 2, None)}


class Stub(nn.Module):
    """As much of a detector as a probe calls."""

    def __init__(self, head=None):
        super().__init__()
        self.bbox_head = Head() if head is None else head
        self.neck = nn.Identity()
        self.seen = []

    def data_preprocessor(self, batch, training):
        assert not training
        return {'inputs': torch.stack(batch['inputs']).float(), 'data_samples': batch['data_samples']}

    def predict(self, inputs, data_samples, rescale):
        assert not rescale and len(inputs) == len(data_samples)
        self.seen.append(inputs)
        return self.bbox_head(self.neck(inputs))


def seen_by(config, **options):
    """The probe, and all of its images as they come to a detector."""
    probe, model = DetectorProbe(config, **options), Stub()
    for first, last in probe.batches():
        probe.run(model, first, last)
    return probe, model.seen


@pytest.fixture
def folder(tmp_path):
    """Five images of one grey each in two folders, and what is none."""
    (tmp_path / 'pictures' / 'more').mkdir(parents=True)
    for number, name in enumerate(['b.png', 'a.PNG', 'more/d.jpg', 'c.bmp', 'e.jpeg']):
        cv2.imwrite(str(tmp_path / 'pictures' / name), np.full((20, 30, 3), 40 * number + 20, np.uint8))
    (tmp_path / 'pictures' / 'notes.txt').write_text('no image')
    (tmp_path / 'pictures' / 'folder.png').mkdir()
    return tmp_path / 'pictures'


# ---- sizes


@pytest.mark.parametrize(
    ('steps', 'size'),
    [
        ([dict(type='Resize', scale=(1333, 800), keep_ratio=True)], (1333, 800)),
        ([dict(type='LoadImageFromFile'), dict(type='Resize', scale=[512, 384])], (512, 384)),
        ([dict(type='RandomResize', scale=[(1333, 640), (1333, 800)])], (1333, 640)),
        ([dict(type='Resize', scale=320)], (320, 320)),
        ([dict(type='Resize', scale=(416, 416)), dict(type='Resize', scale=(64, 64))], (416, 416)),
        ([dict(type='CenterCrop', crop_size=224)], (224, 224)),
        ([dict(type='ResizeEdge', scale=256, edge='short'), dict(type='CenterCrop', crop_size=224)], (256, 256)),
        ([dict(type='Resize', scale_factor=0.5)], None),
        ([dict(type='Resize', scale=(-1, 800))], None),
        ([], None),
    ],
)
def test_the_size_is_that_of_the_first_step_with_a_scale(steps, size):
    assert input_size(steps) == size


def test_a_detector_whose_size_nobody_tells():
    width, height = DetectorProbe(pipeline(), count=1).describe()['size']
    assert width * FALLBACK_SIZE[1] == pytest.approx(height * FALLBACK_SIZE[0], rel=0.01)


@pytest.mark.parametrize(
    ('name', 'size'),
    [
        ('mmdet::ssd/ssd300_coco.py', (300, 300)),
        ('mmdet::yolox/yolox_s_8xb8-300e_coco.py', (512, 512)),
        ('mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py', (512, 512)),
        ('mmdet::retinanet/retinanet_r50_fpn_1x_coco.py', (660, 396)),
    ],
)
def test_stock_configs_get_images_of_their_shape_but_not_too_many_pixels(name, size):
    probe, seen = seen_by(read_config(name), count=1)
    assert probe.describe()['size'] == list(size) and size[0] * size[1] <= MAX_PIXELS
    assert tuple(seen[0].shape) == (1, 3, size[1], size[0])


def test_the_shape_is_kept_when_images_are_made_smaller():
    probe = DetectorProbe(pipeline(dict(type='Resize', scale=(4000, 1000), keep_ratio=True)), count=1)
    width, height = probe.describe()['size']
    assert 0.98 * MAX_PIXELS < width * height <= MAX_PIXELS and width / height == pytest.approx(4, rel=0.01)


def test_others_are_new_images_of_the_same_kind():
    config, style = pipeline(dict(type='Resize', scale=(96, 64))), DEFAULT
    probe = DetectorProbe(config, 3, 5, style=style)
    others = probe.others(300)
    assert type(others) is DetectorProbe and others.describe() == {**probe.describe(), 'count': 341, 'seed': 6}
    assert others.images == 341 and others.batch == 10  # 2^21 and 2^16 pixels
    assert torch.equal(others._images[0], procedural_images(1, 64, 96, 6, style)[0])
    assert probe.others(3).images == 40  # three batches to train on, one to judge


def test_others_of_large_images_are_few_and_run_one_by_one():
    others = DetectorProbe(pipeline(dict(type='Resize', scale=(2000, 1000))), 1).others(300)
    assert others.images == 8 and others.batch == 1


def test_images_of_a_folder_have_no_others(tmp_path):
    cv2.imwrite(str(tmp_path / 'a.png'), np.zeros((20, 30, 3), np.uint8))
    probe = DetectorProbe(pipeline(dict(type='Resize', scale=(30, 20))), folder=tmp_path)
    assert probe.others(300) is probe


def test_the_config_stays_as_it_was():
    config = pipeline(dict(type='Resize', scale=(2000, 1000)), dict(type='Pad', size=(2000, 1000)))
    before = config.pretty_text
    DetectorProbe(config, count=1)
    assert config.pretty_text == before


# ---- images


def test_the_number_of_images_goes_by_their_size():
    small, large = (DetectorProbe(pipeline(dict(type='Resize', scale=scale))) for scale in ((32, 32), (800, 800)))
    assert (large.images, small.images) == COUNTS
    assert large.batch == 1 and small.batch >= small.images
    assert DetectorProbe(pipeline(dict(type='Resize', scale=(32, 32))), count=3).images == 3


def test_procedural_images_reach_the_detector():
    """In the order of channels in which files are read, which does not matter to them."""
    config = pipeline(dict(type='Resize', scale=(48, 32)))
    probe, seen = seen_by(config, count=3, seed=7)
    said = {'kind': 'procedural', 'seed': 7, 'size': [48, 32], 'count': 3}
    assert probe.describe() == {**said, 'style': PLAIN.describe()}
    assert torch.equal(torch.cat(seen), procedural_images(3, 32, 48, seed=7).float())


def test_images_of_a_folder_in_the_order_of_their_names(folder):
    config = pipeline(dict(type='Resize', scale=(48, 32)))
    probe, seen = seen_by(config, folder=folder)
    assert probe.describe() == {'kind': 'folder', 'folder': 'pictures', 'count': 5}
    found = torch.cat(seen).mean((1, 2, 3))
    assert found.tolist() == pytest.approx([60, 20, 140, 180, 100], abs=1)
    assert seen[0].shape[1:] == (3, 32, 48)
    assert DetectorProbe(config, count=2, folder=folder).images == 2
    assert DetectorProbe(config, count=50, folder=folder).images == 5


def test_images_of_a_folder_keep_the_size_of_the_config(folder):
    _, seen = seen_by(pipeline(dict(type='Resize', scale=(1200, 800))), folder=folder, count=1)
    assert seen[0].shape == (1, 3, 800, 1200)


def test_no_more_images_of_a_folder_than_procedural_ones(folder):
    for number in range(6):
        cv2.imwrite(str(folder / f'more{number}.png'), np.zeros((20, 30, 3), np.uint8))
    probe = DetectorProbe(pipeline(dict(type='Resize', scale=(1200, 800))), folder=folder)
    assert probe.images == COUNTS[0] == 8


def test_folders_that_will_not_do(folder, tmp_path):
    config = pipeline(dict(type='Resize', scale=(48, 32)))
    with pytest.raises(RiemError, match=r'--images .*missing: expected a folder of images, found none'):
        DetectorProbe(config, folder=tmp_path / 'missing')
    with pytest.raises(RiemError, match='expected a folder of images'):
        DetectorProbe(config, folder=folder / 'b.png')
    (tmp_path / 'empty').mkdir()
    with pytest.raises(RiemError, match=r'expected images \(.*\.jpg.*\), found none'):
        DetectorProbe(config, folder=tmp_path / 'empty')
    (folder / 'aa.png').write_bytes(b'no image at all')
    with pytest.raises(RiemError, match=r'aa\.png: expected an image, found something else; remove it'):
        seen_by(config, folder=folder)


def test_a_negative_number_of_images_is_refused(folder):
    config = pipeline(dict(type='Resize', scale=(48, 32)))
    for where in (None, folder):
        with pytest.raises(RiemError, match='--image-count -2: expected 0'):
            DetectorProbe(config, count=-2, folder=where)


def test_pipelines_are_found_where_configs_have_them():
    steps = pipeline(dict(type='Resize', scale=(48, 32))).test_dataloader.dataset.pipeline
    annotated = [*steps[:2], dict(type='LoadAnnotations', with_bbox=True), steps[2]]
    places = [
        dict(test_pipeline=annotated),
        dict(test_dataloader=dict(dataset=dict(type='RepeatDataset', dataset=dict(pipeline=annotated)))),
        dict(test_dataloader=dict(dataset=dict(pipeline=annotated)), test_pipeline=[]),
    ]
    for place in places:
        assert DetectorProbe(Config(place), count=1).describe()['size'] == [48, 32]
    for place in ({}, dict(test_dataloader=None), dict(test_dataloader=dict(dataset=dict(type='CocoDataset')))):
        with pytest.raises(RiemError, match=r'expected a test pipeline .* use --metric identity'):
            DetectorProbe(Config(place))


@pytest.mark.parametrize('channels', [1, 2, 3, 4, 7])
def test_images_have_as_many_channels_as_there_are_means(channels):
    config, model = pipeline(dict(type='Resize', scale=(48, 32))), Stub()
    model.__dict__['data_preprocessor'] = Floats(channels)
    probe = DetectorProbe(config, count=2, seed=3)
    probe.run(model, 0, 2)
    (seen,) = model.data_preprocessor.seen
    assert seen.shape == (2, channels, 32, 48) and seen.dtype == torch.uint8
    plain = procedural_images(2, 32, 48, seed=3)
    if channels > 1:
        assert torch.equal(seen[:, : min(channels, 3)], plain[:, : min(channels, 3)])
    for further in seen.float().flatten(2)[:, 3:].unbind(1):  # half the image's own light, half another's
        for its, own in zip(further, plain.float().mean(1).flatten(1)):
            assert 0.3 < torch.corrcoef(torch.stack([its, own]))[0, 1] < 0.99
    assert len({tuple(plane.flatten().tolist()) for plane in seen[0]}) == channels


def test_images_of_a_folder_must_have_the_channels_of_the_detector(tmp_path):
    cv2.imwrite(str(tmp_path / 'four.png'), np.full((20, 30, 4), (10, 20, 30, 40), np.uint8))
    model = Stub()
    model.__dict__['data_preprocessor'] = Floats(4)
    config = pipeline(dict(type='Resize', scale=(30, 20)))
    DetectorProbe(config, folder=tmp_path).run(model, 0, 1)
    assert model.data_preprocessor.seen[0][0, :, 0, 0].tolist() == [10, 20, 30, 40]
    cv2.imwrite(str(tmp_path / 'four.png'), np.zeros((20, 30, 3), np.uint8))
    with pytest.raises(RiemError, match=r'four\.png: expected an image of 4 channels, found 3'):
        DetectorProbe(config, folder=tmp_path).run(model, 0, 1)


def test_hidden_files_are_no_images(folder):
    (folder / '._b.png').write_bytes(b'of a file manager')
    (folder / '.thumbnails').mkdir()
    (folder / '.thumbnails' / 'b.png').write_bytes(b'of another')
    assert DetectorProbe(pipeline(dict(type='Resize', scale=(48, 32))), folder=folder).images == 5


# ---- outputs


def test_detectors_whose_predict_takes_no_rescale():
    model = Stub()
    model.predict = lambda inputs, data_samples: model.bbox_head(inputs)
    assert len(DetectorProbe(pipeline(dict(type='Resize', scale=(48, 32))), count=1).run(model, 0, 1)) == 2


def test_the_floats_of_the_outermost_heads_are_the_outputs():
    config = pipeline(dict(type='Resize', scale=(48, 32)))
    for head in (Head(), Head(Head())):
        outputs = DetectorProbe(config, count=2).run(Stub(head), 0, 2)
        assert [tuple(output.shape) for output in outputs] == [(2, 3), (2, 3)]
        assert all(output.requires_grad for output in outputs)
        assert torch.equal(outputs[1], 2 * outputs[0])


def test_a_detector_without_a_head_is_one_error():
    model = Stub()
    model.neck = model.bbox_head
    del model.bbox_head
    model.predict = lambda inputs, data_samples, rescale: model.neck(inputs)
    with pytest.raises(RiemError, match=r'Stub: expected a module named \.\.\.head .* use --metric identity'):
        DetectorProbe(pipeline(dict(type='Resize', scale=(48, 32))), count=1).run(model, 0, 1)


def test_no_hook_stays():
    model = Stub(Head(Head()))
    probe = DetectorProbe(pipeline(dict(type='Resize', scale=(48, 32))), count=1)
    probe.run(model, 0, 1)
    model.predict = lambda *arguments, **options: 1 / 0
    with pytest.raises(RiemError, match=r'ZeroDivisionError.* use --metric identity'):
        probe.run(model, 0, 1)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


# ---- detectors


def demo(name):
    config = Config.fromfile(ROOT / f'configs/demo/{name}.py')
    model = build_detector(config)
    checkpoint = ROOT / f'demo/{name}.pth'
    load_into(model, read_checkpoint(checkpoint).state_dict, checkpoint)
    return config, model.eval()


def test_every_weight_of_a_detector_with_two_stages_is_reached():
    config, model = demo('faster-rcnn_swin_fpn_digits')
    views = find_weights(model)
    found = collect(model, views, DetectorProbe(config, count=2))
    assert set(found) == {view.name for view in views}
    sources = {name: metric.source for name, metric in found.items()}
    tables = {name for name, source in sources.items() if source == 'gradients'}
    assert tables and all(name.endswith('relative_position_bias_table') for name in tables)
    assert {name.split('.')[0] for name in found} == {'backbone', 'neck', 'rpn_head', 'roi_head'}
    for metric in found.values():
        assert metric.output_weights.isfinite().all() and all(block.isfinite().all() for block in metric.blocks)


def test_every_weight_of_a_detector_with_one_stage_is_reached():
    config, model = demo('gfl_r18_fpn_digits')
    views = find_weights(model)
    found = collect(model, views, DetectorProbe(config, count=2))
    assert set(found) == {view.name for view in views}
    assert {metric.source for metric in found.values()} == {'inputs'}


def test_thresholds_of_the_second_stage_are_off_while_it_runs_and_back_afterwards():
    config, model = demo('faster-rcnn_swin_fpn_digits')
    settings, rpn = model.roi_head.test_cfg, dict(model.rpn_head.test_cfg)
    model.roi_head.shares = nn.Module()
    model.roi_head.shares.test_cfg = settings
    seen = []
    model.roi_head.bbox_head.register_forward_pre_hook(lambda *_: seen.append(settings['score_thr']))
    probe = DetectorProbe(config, count=1)
    outputs = probe.run(model, 0, 1)
    assert seen == [0.0] and settings['score_thr'] == 0.05 and dict(model.rpn_head.test_cfg) == rpn
    assert outputs[-2].shape[1] == 11 and outputs[-1].shape[1] == 4  # classes and boxes of the second stage
    model.roi_head.bbox_head.register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(RiemError, match=r'ZeroDivisionError.* use --metric identity'):
        probe.run(model, 0, 1)
    assert settings['score_thr'] == 0.05


def test_a_mask_head_sees_few_boxes_of_an_image():
    config = Config.fromfile(ROOT / 'configs/demo/faster-rcnn_swin_fpn_digits.py')
    rois = {**config.model.roi_head.bbox_roi_extractor.to_dict(), 'roi_layer': {'type': 'RoIAlign', 'output_size': 4}}
    config.model.roi_head.mask_roi_extractor = rois
    config.model.roi_head.mask_head = dict(type='FCNMaskHead', num_convs=1, in_channels=64, num_classes=10)
    config.model.test_cfg.rcnn.update(mask_thr_binary=0.5, max_per_img=MASKS + 8)
    model, seen = build_detector(config).eval(), []
    before = dict(model.roi_head.test_cfg)
    model.roi_head.mask_head.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    DetectorProbe(config, count=2).run(model, 0, 2)
    assert seen == [2 * MASKS] and dict(model.roi_head.test_cfg) == before


def test_one_stage_keeps_its_threshold(tiny_config):
    config = read_config(tiny_config)
    config.model.test_cfg.score_thr = 0.4
    model, seen = build_detector(config).eval(), []
    model.bbox_head.register_forward_pre_hook(lambda *_: seen.append(model.test_cfg['score_thr']))
    DetectorProbe(config, count=1).run(model, 0, 1)
    assert seen == [0.4]


# ---- classifiers, and whatever else is no detector


class Classifier(nn.Module):
    """As much of a classifier as a probe calls; `mean` as the preprocessor of the networks of MMEngine has it."""

    def __init__(self, channels=3):
        super().__init__()
        self.data_preprocessor = Preprocessor(channels)
        self.linear = nn.Linear(channels, 5)

    def forward(self, inputs, data_samples, mode):
        assert mode == 'tensor' and len(data_samples) == len(inputs)
        return {'logits': self.linear(inputs.float().mean((2, 3))), 'labels': torch.arange(3)}


class Preprocessor(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.register_buffer('mean', torch.zeros(channels, 1, 1))
        self.seen = []

    def forward(self, batch, training):
        self.seen.append(torch.stack(batch['inputs']))
        return {'inputs': self.seen[-1], 'data_samples': batch['data_samples']}


class Floats(Preprocessor):
    """One that hands on floats, as those of detectors do."""

    def forward(self, batch, training):
        found = super().forward(batch, training)
        return {**found, 'inputs': found['inputs'].float()}


def classification(*steps, kind='mmriem.CIFAR10'):
    every = [dict(type='mmriem.LoadImage'), *steps, dict(type='mmriem.PackImage')]
    return Config(dict(default_scope='mmengine', test_dataloader=dict(dataset=dict(type=kind, pipeline=every))))


@pytest.mark.parametrize('channels', [1, 3])
def test_the_floats_of_mode_tensor_are_the_outputs(channels):
    config, model = classification(dict(type='mmriem.Resize', scale=(24, 16))), Classifier(channels)
    probe = build_probe(config, model, count=3, seed=4)
    (logits,) = probe.run(model, 1, 3)
    assert type(probe) is OutputProbe and logits.shape == (2, 5) and logits.requires_grad
    (seen,) = model.data_preprocessor.seen
    assert seen.shape == (2, channels, 16, 24) and seen.dtype == torch.uint8
    expected = procedural_images(3, 16, 24, 4, DEFAULT)[1:]
    if channels == 3:
        assert torch.equal(seen, expected)
    else:  # blue counts least
        weights = torch.tensor([0.114, 0.587, 0.299]).view(3, 1, 1)
        assert (seen - (weights * expected).sum(1, keepdim=True)).abs().max() <= 0.6


def test_small_images_are_many_and_large_ones_keep_their_size():
    probes = {size: OutputProbe(classification(dict(type='mmriem.Resize', scale=size))) for size in (32, 224, 600)}
    assert {size: (probe.images, probe.batch) for size, probe in probes.items()} == {
        32: (256, 32),
        224: (41, 5),
        600: (8, 1),
    }
    assert probes[600].describe()['size'] == [600, 600]


def test_sets_that_are_taken_as_they_are():
    for kind, size in (('CIFAR100', [32, 32]), ('mmpretrain.MNIST', [28, 28])):
        assert OutputProbe(classification(kind=kind), count=1).describe()['size'] == size
    with pytest.raises(RiemError, match=r'expected a step with a scale or crop_size .*mmriem\.Resize'):
        OutputProbe(classification(kind='Other'))


def test_a_model_without_outputs_is_one_error():
    model = Classifier()
    model.forward = lambda inputs, data_samples, mode: None
    with pytest.raises(RiemError, match='Classifier: expected tensors from forward in mode tensor, found none'):
        OutputProbe(classification(dict(type='mmriem.Resize', scale=8)), count=1).run(model, 0, 1)


def test_detectors_get_the_probe_of_detectors(tiny_config):
    config = read_config(tiny_config)
    assert type(build_probe(config, build_detector(config), count=1)) is DetectorProbe


# ---- images that are optimised


def test_the_images_of_a_detector_are_optimised_until_its_norms_know_them_better():
    config, model = demo('gfl_r18_fpn_digits')
    plain, made = (build_probe(config, model, 3, synthesis=steps) for steps in (0, 4))
    assert made.describe() == {**plain.describe(), 'kind': 'synthetic', 'steps': 4}
    shares = []
    made.synthesise(model, on_progress=shares.append)
    assert shares == [0.25, 0.5, 0.75, 1.0]
    assert distance(model, made) < 0.9 * distance(model, plain)
    assert not torch.equal(made.run(model, 1, 2)[0], plain.run(model, 1, 2)[0])
    pictures = made.pictures(model, 2)
    assert [picture.shape for picture in pictures] == [picture.shape for picture in plain.pictures(model, 2)]
    assert 0 < np.abs(pictures[0].astype(int) - plain.pictures(model, 1)[0]).mean() < 60


def test_a_detector_without_such_norms_keeps_procedural_images():
    config, model = demo('faster-rcnn_swin_fpn_digits')
    probe = build_probe(config, model, 2)
    assert probe.describe()['kind'] == 'procedural'
    with pytest.raises(RiemError, match='synthesis 5: expected norms with statistics'):
        build_probe(config, model, 2, synthesis=5)


def test_images_of_a_folder_are_not_optimised(folder):
    config, model = demo('gfl_r18_fpn_digits')
    probe = build_probe(config, model, folder=folder)
    assert probe.describe()['kind'] == 'folder' and len(probe.pictures(model, 3)) == 3
    with pytest.raises(RiemError, match='synthesis 5: expected procedural images'):
        build_probe(config, model, folder=folder, synthesis=5)
