"""Agreement of two models without labels: what the original finds on images is the truth for the compressed one."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mmriem.core.errors import RiemError
from mmriem.core.images.probe import Probe

from .probe import ConfigProbe, DetectorProbe

__all__ = ['SCORE', 'SIZES', 'Agreement', 'Found', 'Pairs', 'Reference', 'in_words', 'paired', 'top_classes']

SCORE = 0.3
"""Least score of what the original finds, for it to be the truth."""
OVERLAP = 0.5
"""Least intersection over union of two boxes that are the same object."""
SIZES = ('small', 'medium', 'large')
"""Of objects, below 32 x 32 pixels, below 96 x 96, and above, as COCO has them."""
TOP = 3
"""Classes of an image that are told."""


@dataclass(frozen=True)
class Found:
    """What a detector finds on one image, ``n`` objects, best score first.

    Attributes:
        boxes: float64 ``(n, 4)``, left, top, right, bottom, in pixels of the image as it was read.
        scores: float64 ``(n,)``.
        labels: int64 ``(n,)``.
        size: height and width of the image in pixels.
        masks: run lengths as pycocotools has them, or None where the detector has no masks.
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    size: tuple[int, int]
    masks: list[dict[str, Any]] | None = None

    def mask(self, number: int) -> dict[str, Any]:
        """That of one object, of a detector that has masks."""
        if self.masks is None:
            raise ValueError('there are no masks')
        return self.masks[number]

    def __len__(self) -> int:
        return len(self.scores)

    def above(self, score: float) -> Found:
        """Those with at least this score."""
        kept = self.scores >= score
        masks = None if self.masks is None else [mask for mask, is_kept in zip(self.masks, kept) if is_kept]
        return Found(self.boxes[kept], self.scores[kept], self.labels[kept], self.size, masks)


@dataclass(frozen=True)
class Pairs:
    """Which objects of the original the compressed detector finds again on one image.

    Attributes:
        original, compressed: all that they find.
        same: ``(number in original, number in compressed, intersection over union)`` of each object found by both.
        missed: numbers in `original` of objects that the other does not find.
        new: numbers in `compressed` of objects that the original does not find.
    """

    original: Found
    compressed: Found
    same: list[tuple[int, int, float]]
    missed: list[int]
    new: list[int]

    @property
    def quality(self) -> float:
        """Panoptic quality: overlaps of the pairs over the number of objects, one of a single side counting half."""
        objects = len(self.same) + (len(self.missed) + len(self.new)) / 2
        return sum(overlap for *_, overlap in self.same) / objects if objects else 1.0


@dataclass(frozen=True)
class Agreement:
    """How far two models agree.

    Attributes:
        figures: what is told of it, JSON-able: see docs/agreement.md.
        order: numbers of the images, the one with the least agreement first.
        details: of each image: `Pairs` of detectors, the two ``(classes,)`` probabilities of classifiers.
    """

    figures: dict[str, Any]
    order: list[int]
    details: list[Any]


class Reference:
    """What the original says of images, for compressed models to be compared with.

    Args:
        model: a detector or classifier in eval mode.
        probe: the images.
        score: of a detector: what it finds with at least this score is the truth.

    Raises:
        RiemError: the model cannot be run, or its outputs are neither instances with boxes nor logits.
    """

    def __init__(self, model: nn.Module, probe: ConfigProbe, score: float = SCORE) -> None:
        if not 0 < score < 1:
            raise RiemError(f'--score {score:g}: expected a number between 0 and 1')
        self.model, self.probe, self.score = model, probe, score
        self._said = _said(model, probe)

    def agree(self, model: nn.Module) -> Agreement:
        """Compare what another model with the same outputs says of the same images.

        Raises:
            RiemError: as above.
        """
        both, images = (self._said, _said(model, self.probe)), dict(self.probe.describe())
        if isinstance(self.probe, DetectorProbe):
            classes = getattr(self.model, 'dataset_meta', {}).get('classes') or ()
            return _of_detectors(*both, classes, self.score, images)
        return _of_classifiers(*both, images)


def in_words(figures: Mapping[str, Any]) -> str:
    """What the figures of an agreement say, in a sentence or two."""
    images = f'on {figures["count"]} {_kind(figures["images"])}'
    if figures['kind'] == 'classes':
        return (
            f'{images} both say the same class {100 * figures["top1"]:.1f} % of the time '
            f'(Kullback-Leibler divergence {figures["kl"]:.3g} nats)'
        )
    if not figures['objects']:
        return f'{images} the original finds nothing that scores {figures["score"]:g} or more, so nothing is compared'
    told = (
        f'{images} the original finds {figures["objects"]:,} objects that score {figures["score"]:g} or more; of these '
        f'the compressed one misses {figures["missed"]:,}, and it finds {figures["new"]:,} others. Against them its AP '
        f'is {100 * figures["AP"]:.1f}, its AP50 {100 * figures["AP50"]:.1f}'
    )
    if figures['score_change'] is None:
        return told
    return (
        f'{told}. Scores of the same objects change by {figures["score_change"]:.3f} on average, and their boxes '
        f'overlap by {100 * figures["overlap"]:.1f} %'
    )


def paired(original: Found, compressed: Found, score: float = SCORE) -> Pairs:
    """Pair what two detectors find on one image.

    An object of either side is one that scores ``score`` or more. It is the same as one of the other side of its class
    that overlaps by ``OVERLAP`` or more and scores half as much or more: a score just below the threshold is no loss.

    Args:
        original, compressed: what they find.
        score: least score of an object.
    """
    same = _matched(original, compressed, score)
    back = {second for second, *_ in _matched(compressed, original, score)}
    missed = set(_numbers(original, score)) - {first for first, *_ in same}
    new = set(_numbers(compressed, score)) - back - {second for _, second, _ in same}
    return Pairs(original, compressed, same, sorted(missed), sorted(new))


def _numbers(found: Found, score: float) -> list[int]:
    return np.flatnonzero(found.scores >= score).tolist()


def _matched(ones: Found, others: Found, score: float) -> list[tuple[int, int, float]]:
    """For each of the ones, best score first, the free one of the others that overlaps most."""
    overlaps = _overlaps(ones.boxes, others.boxes)
    overlaps[ones.labels[:, None] != others.labels[None]] = 0
    overlaps[:, others.scores < score / 2] = 0
    pairs = []
    for number in _numbers(ones, score):
        best = int(overlaps[number].argmax()) if len(others) else 0
        if len(others) and overlaps[number, best] >= OVERLAP:
            pairs.append((number, best, float(overlaps[number, best])))
            overlaps[:, best] = 0
    return pairs


def _overlaps(ones: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Intersection over union of boxes ``(n, 4)`` and ``(m, 4)``, ``(n, m)``."""
    low = np.maximum(ones[:, None, :2], others[None, :, :2])
    high = np.minimum(ones[:, None, 2:], others[None, :, 2:])
    common = (high - low).clip(0).prod(2)
    areas = [(boxes[:, 2:] - boxes[:, :2]).clip(0).prod(1) for boxes in (ones, others)]
    union = areas[0][:, None] + areas[1][None] - common
    return np.divide(common, union, out=np.zeros_like(common), where=union > 0)


def _said(model: nn.Module, probe: Probe) -> Any:
    """A list of `Found`, or logits; images run one at a time, as they may differ in size and batches pad them."""
    if isinstance(probe, DetectorProbe):
        return [_found(model, probe, number) for number in range(probe.images)]
    return torch.cat([_logits(model, probe, number) for number in range(probe.images)]).double()


@torch.no_grad()
def _found(model: nn.Module, probe: DetectorProbe, number: int) -> Found:
    (sample,) = probe.predictions(model, number, number + 1)
    instances: Any = getattr(sample, 'pred_instances', None)
    boxes = getattr(instances, 'bboxes', None)
    boxes = getattr(boxes, 'tensor', boxes)
    if not isinstance(boxes, Tensor) or boxes.shape[-1] != 4:
        raise RiemError(
            f'{type(model).__name__}: expected predictions with upright boxes (pred_instances.bboxes), found none; '
            'evaluate it with mmriem test'
        )
    order = instances.scores.argsort(descending=True, stable=True)
    masks = getattr(instances, 'masks', None)
    return Found(
        boxes[order].double().cpu().numpy(),
        instances.scores[order].double().cpu().numpy(),
        instances.labels[order].cpu().numpy(),
        tuple(sample.ori_shape[:2]),
        None
        if masks is None
        else _run_lengths(masks[order.to(masks.device) if isinstance(masks, Tensor) else order.numpy()]),
    )


def _run_lengths(masks: Tensor | np.ndarray) -> list[dict[str, Any]]:
    from pycocotools import mask

    planes = masks.cpu().numpy() if isinstance(masks, Tensor) else masks
    return [mask.encode(np.asfortranarray(plane.astype(np.uint8))) for plane in planes]


@torch.no_grad()
def _logits(model: nn.Module, probe: Probe, number: int) -> Tensor:
    outputs = probe.run(model, number, number + 1)
    if len(outputs) != 1 or outputs[0].dim() != 2 or outputs[0].shape[1] < 2:
        raise RiemError(
            f'{type(model).__name__}: expected logits (images, classes), found '
            f'{", ".join(str(tuple(each.shape)) for each in outputs)}; evaluate it with mmriem test'
        )
    return outputs[0].cpu()


def _of_detectors(
    original: Sequence[Found],
    compressed: Sequence[Found],
    classes: Sequence[str],
    score: float,
    images: dict[str, Any],
) -> Agreement:
    truths = [found.above(score) for found in original]
    details = [paired(*both, score) for both in zip(original, compressed)]
    figures: dict[str, Any] = {
        'kind': 'detections',
        'images': images,
        'count': len(details),
        'score': score,
        'objects': sum(map(len, truths)),
        'missed': sum(len(pairs.missed) for pairs in details),
        'new': sum(len(pairs.new) for pairs in details),
        **_drift(details),
        **_precision(truths, compressed, classes, 'bbox'),
    }
    if truths and truths[0].masks is not None:
        figures['masks'] = _precision(truths, compressed, classes, 'segm')
        figures['masks']['overlap'] = _mask_overlap(details)
    figures['quality'] = [round(pairs.quality, 4) for pairs in details]
    order = sorted(range(len(details)), key=lambda number: (details[number].quality, number))
    return Agreement(figures, order, details)


def _drift(details: Sequence[Pairs]) -> dict[str, float | None]:
    """How scores and boxes of the same objects change, on average."""
    same = [(pairs, *pair) for pairs in details for pair in pairs.same]
    if not same:
        return {'score_shift': None, 'score_change': None, 'overlap': None}
    shifts = [pairs.compressed.scores[second] - pairs.original.scores[first] for pairs, first, second, _ in same]
    return {
        'score_shift': float(np.mean(shifts)),
        'score_change': float(np.abs(shifts).mean()),
        'overlap': float(np.mean([overlap for *_, overlap in same])),
    }


def _mask_overlap(details: Sequence[Pairs]) -> float | None:
    from pycocotools import mask

    overlaps = [
        mask.iou([pairs.compressed.mask(second)], [pairs.original.mask(first)], [0])[0, 0]
        for pairs in details
        for first, second, _ in pairs.same
    ]
    return float(np.mean(overlaps)) if overlaps else None


def _precision(
    truths: Sequence[Found],
    found: Sequence[Found],
    classes: Sequence[str],
    kind: str,
) -> dict[str, Any]:
    """Average precision as COCO defines it, by class and by size; None where there is no object."""
    from pycocotools.cocoeval import COCOeval

    labels = sorted({int(label) for each in truths for label in each.labels})
    if not labels:
        return {'AP': None, 'AP50': None, 'by_class': [], 'by_size': dict.fromkeys(SIZES)}
    with redirect_stdout(io.StringIO()):  # pycocotools prints
        evaluation = COCOeval(_coco(truths, labels, kind), _coco(found, labels, kind), kind)
        evaluation.params.maxDets = [max(100, *map(len, found))]
        evaluation.evaluate()
        evaluation.accumulate()
    precision = evaluation.eval['precision'][..., 0]  # overlap, recall, class, size
    counts = {label: sum(int((each.labels == label).sum()) for each in truths) for label in labels}
    by_class = [
        {
            'class': str(classes[label]) if label < len(classes) else f'class {label}',
            'objects': counts[label],
            'AP': _mean(precision[:, :, at, 0]),
            'AP50': _mean(precision[0, :, at, 0]),
        }
        for at, label in enumerate(labels)
    ]
    return {
        'AP': _mean(precision[..., 0]),
        'AP50': _mean(precision[0, ..., 0]),
        'by_class': by_class,
        'by_size': {name: _mean(precision[..., at]) for at, name in enumerate(SIZES, 1)},
    }


def _mean(precision: np.ndarray) -> float | None:
    """Without the entries of -1, which have no object."""
    known = precision[precision > -1]
    return float(known.mean()) if known.size else None


def _coco(every: Sequence[Found], labels: Sequence[int], kind: str) -> Any:
    """What was found as a data set of pycocotools, the classes among `labels` alone."""
    from pycocotools import mask
    from pycocotools.coco import COCO

    annotations: list[dict[str, Any]] = []
    for number, found in enumerate(every):
        for at in range(len(found)):
            if int(found.labels[at]) not in labels:
                continue
            left, top, right, bottom = found.boxes[at].tolist()
            box = [left, top, right - left, bottom - top]
            shape = {} if kind == 'bbox' else {'segmentation': found.mask(at)}
            annotations.append(
                {
                    'id': len(annotations) + 1,
                    'image_id': number,
                    'category_id': int(found.labels[at]),
                    'score': float(found.scores[at]),
                    'bbox': box,
                    'area': box[2] * box[3] if kind == 'bbox' else float(mask.area(found.mask(at))),
                    'iscrowd': 0,
                    **shape,
                }
            )
    coco = COCO()
    coco.dataset = {
        'images': [{'id': at, 'height': found.size[0], 'width': found.size[1]} for at, found in enumerate(every)],
        'categories': [{'id': label} for label in labels],
        'annotations': annotations,
    }
    coco.createIndex()
    return coco


def _of_classifiers(original: Tensor, compressed: Tensor, images: dict[str, Any]) -> Agreement:
    before, after = original.log_softmax(1), compressed.log_softmax(1)
    divergence = (before.exp() * (before - after)).sum(1)
    truth = before.argmax(1)
    change = (after.exp() - before.exp()).gather(1, truth[:, None])
    figures = {
        'kind': 'classes',
        'images': images,
        'count': len(truth),
        'top1': float((after.argmax(1) == truth).double().mean()),
        'kl': max(float(divergence.mean()), 0.0),
        'score_shift': float(change.mean()),
        'score_change': float(change.abs().mean()),
        'divergence': [round(max(each, 0.0), 6) for each in divergence.tolist()],
    }
    order = sorted(range(len(truth)), key=lambda number: (-float(divergence[number]), number))
    return Agreement(figures, order, list(zip(before.exp().numpy(), after.exp().numpy())))


def _kind(images: Mapping[str, Any]) -> str:
    known = {'procedural': 'procedural images', 'synthetic': 'synthetic images'}
    return known.get(str(images.get('kind')), f'images of the folder {images.get("folder")}')


def top_classes(probabilities: np.ndarray, classes: Sequence[str]) -> list[str]:
    """The best classes of an image and their probabilities, as text."""
    best = np.argsort(-probabilities, kind='stable')[: min(TOP, len(probabilities))]
    names = [str(classes[at]) if at < len(classes) else f'class {at}' for at in best]
    return [f'{name} {probabilities[at]:.2f}' for name, at in zip(names, best) if math.isfinite(probabilities[at])]
