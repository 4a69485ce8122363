"""Agreement of two models on images without labels."""

import json

import numpy as np
import pytest
import torch
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.model import BaseDataPreprocessor
from mmengine.structures import InstanceData
from pycocotools import mask as coco_mask
from torch import nn

from mmriem.core.errors import RiemError
from mmriem.core.images.probe import ImageProbe
from mmriem.engine.agreement import Found, Reference, in_words, paired
from mmriem.engine.config import read_config
from mmriem.engine.detector import init_detector
from mmriem.engine.evaluation import evaluate
from mmriem.engine.probe import DetectorProbe, build_probe
from mmriem.engine.worst_images import worst_images, write_worst

SQUARE, OTHER, FAR = (10, 10, 30, 30), (10, 10, 30, 26), (40, 40, 60, 60)


def found(*objects):
    """Of ``(box, score, label)``."""
    boxes, scores, labels = zip(*objects) if objects else ([], [], [])
    return Found(np.array(boxes, float).reshape(-1, 4), np.array(scores, float), np.array(labels, int), (64, 64))


def test_the_same_objects_are_paired():
    pairs = paired(found((SQUARE, 0.9, 0), (FAR, 0.8, 1)), found((FAR, 0.7, 1), (OTHER, 0.6, 0)))
    assert [(first, second) for first, second, _ in pairs.same] == [(0, 1), (1, 0)]
    assert [overlap for *_, overlap in pairs.same] == pytest.approx([0.8, 1.0])
    assert (pairs.missed, pairs.new) == ([], [])
    assert pairs.quality == pytest.approx(0.9)


@pytest.mark.parametrize(
    'compressed, missed, new, quality',
    [
        ([], [0], [], 0.0),
        ([(SQUARE, 0.9, 1)], [0], [0], 0.0),  # another class
        ([(FAR, 0.9, 0)], [0], [0], 0.0),
        ([(SQUARE, 0.9, 0), (FAR, 0.31, 0)], [], [1], 2 / 3),
        ([(SQUARE, 0.9, 0), (FAR, 0.29, 0)], [], [], 1.0),  # below the score
        ([(SQUARE, 0.16, 0)], [], [], 1.0),  # above half of it
        ([(SQUARE, 0.14, 0)], [0], [], 0.0),
        ([(SQUARE, 0.9, 0), (SQUARE, 0.8, 0)], [], [1], 2 / 3),  # one of them twice
    ],
)
def test_what_is_missed_and_what_is_new(compressed, missed, new, quality):
    pairs = paired(found((SQUARE, 0.5, 0)), found(*compressed), 0.3)
    assert (pairs.missed, pairs.new) == (missed, new)
    assert pairs.quality == pytest.approx(quality)


def test_an_object_that_the_original_scores_just_below_is_not_new():
    pairs = paired(found((SQUARE, 0.29, 0)), found((SQUARE, 0.31, 0)), 0.3)
    assert (pairs.same, pairs.missed, pairs.new, pairs.quality) == ([], [], [], 1.0)


@pytest.fixture(scope='module')
def detectors(tiny_config, runner_checkpoint, riem_file):
    config = read_config(tiny_config)
    return config, *(init_detector(config, path) for path in (runner_checkpoint, riem_file))


def test_a_detector_agrees_with_itself(detectors):
    config, original, _ = detectors
    figures = Reference(original, build_probe(config, original, 4, 1), 0.1).agree(original).figures
    assert figures['objects'] > 0
    assert (figures['AP'], figures['AP50'], figures['missed'], figures['new']) == (1.0, 1.0, 0, 0)
    assert (figures['score_change'], figures['overlap']) == (0.0, 1.0)
    assert figures['quality'] == [1.0] * 4


def test_precision_is_that_of_coco_with_what_the_original_finds_as_annotations(
    detectors, coco_data, riem_file, tmp_path
):
    config, original, compressed = detectors
    probe = build_probe(config, original, folder=coco_data / 'images')
    score = 0.05
    agreement = Reference(original, probe, score).agree(compressed)
    annotations = json.loads((coco_data / 'annotations.json').read_text())
    annotations['annotations'] = []
    for number, pairs in enumerate(agreement.details):
        truth = pairs.original.above(score)
        for box, label in zip(truth.boxes.tolist(), truth.labels.tolist()):
            left, top, right, bottom = box
            annotations['annotations'].append(
                dict(
                    id=len(annotations['annotations']) + 1,
                    image_id=number,
                    category_id=label + 1,
                    bbox=[left, top, right - left, bottom - top],
                    area=(right - left) * (bottom - top),
                    iscrowd=0,
                )
            )
    (tmp_path / 'found.json').write_text(json.dumps(annotations))
    own = Config(config.to_dict())
    own.test_dataloader.dataset.ann_file = str(tmp_path / 'found.json')
    own.test_evaluator.ann_file = str(tmp_path / 'found.json')
    metrics = evaluate(own, riem_file, tmp_path)
    assert 0 < agreement.figures['AP'] < 1
    # mmdet rounds to three digits, and its boxes are rounded to float32 on their way through JSON
    assert agreement.figures['AP'] == pytest.approx(metrics['coco/bbox_mAP'], abs=6e-3)
    assert agreement.figures['AP50'] == pytest.approx(metrics['coco/bbox_mAP_50'], abs=6e-3)


def test_the_worst_images_are_drawn_first(detectors, coco_data, tmp_path):
    config, original, compressed = detectors
    probe = build_probe(config, original, folder=coco_data / 'images')
    agreement = Reference(original, probe, 0.05).agree(compressed)
    quality = agreement.figures['quality']
    assert [quality[number] for number in agreement.order] == sorted(quality)
    pictures = worst_images(agreement, original, probe, 2)
    assert [name for name, _ in pictures] == [f'{number}.png' for number in agreement.order[:2]]
    paths = write_worst(pictures, tmp_path / 'worst')
    assert [path.name for path in paths] == [f'0{n}_{agreement.order[n - 1]}.png' for n in (1, 2)]


class Drawer(nn.Module):
    """A detector with masks that finds what it is told to find on every image."""

    def __init__(self, masks, boxes):
        super().__init__()
        self.data_preprocessor = BaseDataPreprocessor()
        self.masks, self.boxes = masks, boxes

    def add_pred_to_datasample(self):
        """What marks a detector of mmdet's kind."""

    def predict(self, inputs, data_samples):
        for sample in data_samples:
            count = len(self.masks)
            sample.pred_instances = InstanceData(
                bboxes=torch.tensor(self.boxes, dtype=torch.float32).reshape(-1, 4),
                scores=torch.full((count,), 0.9),
                labels=torch.zeros(count, dtype=torch.long),
                masks=torch.stack(self.masks) if count else torch.zeros(0, 32, 32, dtype=torch.bool),
            )
        return data_samples


def test_masks_are_compared_as_boxes_are():
    meta = ('img_id', 'img_path', 'ori_shape', 'img_shape')
    steps = [
        dict(type='LoadImageFromFile'),
        dict(type='Resize', scale=(32, 32)),
        dict(type='PackDetInputs', meta_keys=meta),
    ]
    config = Config(dict(test_dataloader=dict(dataset=dict(pipeline=steps))))
    whole, half = torch.zeros(32, 32, dtype=torch.bool), torch.zeros(32, 32, dtype=torch.bool)
    whole[4:20, 4:20] = True
    half[4:20, 4:16] = True
    box = (4, 4, 20, 20)
    probe = DetectorProbe(config, 2)
    figures = Reference(Drawer([whole], [box]), probe).agree(Drawer([half], [box])).figures
    assert figures['AP'] == 1.0
    assert figures['masks']['overlap'] == pytest.approx(0.75)
    assert figures['masks']['AP50'] == 1.0
    assert figures['masks']['AP'] == pytest.approx(0.6)  # of the thresholds 0.5, 0.55 ... 0.95 six are 0.75 or less
    assert coco_mask.area(coco_mask.encode(np.asfortranarray(half.numpy().astype(np.uint8)))) == 16 * 12


def test_nothing_found_is_said_and_not_counted_as_agreement():
    config = Config(
        dict(
            test_dataloader=dict(
                dataset=dict(
                    pipeline=[
                        dict(type='LoadImageFromFile'),
                        dict(type='Resize', scale=(32, 32)),
                        dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape')),
                    ]
                )
            )
        )
    )
    blind = Drawer([], [])
    figures = Reference(blind, DetectorProbe(config, 2)).agree(blind).figures
    assert (figures['objects'], figures['AP'], figures['AP50']) == (0, None, None)
    assert 'finds nothing that scores 0.3 or more' in in_words(figures)


class Logits(nn.Module):
    """The same logits, whatever the image."""

    def __init__(self, logits):
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(logits))

    def forward(self, images):
        return self.logits[: len(images)] + 0 * images.flatten(1).sum(1, keepdim=True)


def test_classifiers_by_the_class_and_the_divergence():
    probe = ImageProbe(torch.zeros(3, 1, 2, 2))
    one, other = Logits([[2.0, 0.0, 0.0]]), Logits([[0.0, 1.0, 0.0]])
    agreement = Reference(one, probe).agree(other)
    first, second = torch.tensor([2.0, 0, 0]).softmax(0), torch.tensor([0.0, 1, 0]).softmax(0)
    assert agreement.figures['top1'] == 0.0
    assert agreement.figures['kl'] == pytest.approx(float((first * (first / second).log()).sum()), rel=1e-5)
    same = Reference(one, probe).agree(one).figures
    assert (same['top1'], same['kl'], same['score_change']) == (1.0, 0.0, 0.0)


def test_outputs_that_are_no_logits_are_refused():
    with pytest.raises(RiemError, match=r'expected logits .images, classes., found \(1, 3, 2, 2\)'):
        Reference(nn.Conv2d(1, 3, 1), ImageProbe(torch.zeros(2, 1, 2, 2)))


@pytest.mark.parametrize('score', [0.0, 1.0, 30.0])
def test_a_score_that_is_none(score):
    with pytest.raises(RiemError, match='expected a number between 0 and 1'):
        Reference(Logits([[0.0, 1.0]]), ImageProbe(torch.zeros(1, 1, 1, 1)), score)


def test_predictions_without_boxes_are_refused(detectors):
    config, *_ = detectors

    class Blank(Drawer):
        def predict(self, inputs, data_samples):
            return [DetDataSample(metainfo=sample.metainfo) for sample in data_samples]

    with pytest.raises(RiemError, match='expected predictions with upright boxes'):
        Reference(Blank([], []), DetectorProbe(config, 1))
