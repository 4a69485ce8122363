"""Images for a model with a config, and its real way through them: test pipeline, backbone, proposals, second stage."""

from __future__ import annotations

import hashlib
import os
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from mmengine.registry import init_default_scope
from torch import Tensor, nn

from mmriem.core.errors import RiemError
from mmriem.core.execution.executor import Executor
from mmriem.core.images.probe import COUNTS as IMAGE_COUNTS
from mmriem.core.images.probe import (
    MAX_BATCH,
    MAX_PIXELS,
    Probe,
    batch_size,
    float_tensors,
    image_count,
    training_images,
)
from mmriem.core.images.procedural import PLAIN, Style, procedural_images
from mmriem.core.images.style_search import choose_style, few_images

__all__ = ['ConfigProbe', 'DetectorProbe', 'OutputProbe', 'build_probe', 'input_size']

COUNTS = (8, 64)
"""Least and most images for a detector, of which each has many outputs."""
SUFFIXES = {'.jpg', '.jpeg', '.png', '.bmp', '.tif', '.tiff', '.webp'}
FALLBACK_SIZE = (640, 480)
"""Of images for a config whose test pipeline names no size."""
DATASET_SIZES = {'CIFAR10': (32, 32), 'CIFAR100': (32, 32), 'FashionMNIST': (28, 28), 'MNIST': (28, 28)}
"""``(width, height)`` of data sets that test pipelines take as they are."""
MASKS = 25
"""Boxes of an image that a mask head sees; it is several times as costly for a box as the box head."""


def build_probe(
    config: Config,
    model: nn.Module,
    count: int = 0,
    seed: int = 0,
    folder: str | os.PathLike | None = None,
    executor: Executor | None = None,
) -> ConfigProbe:
    """The probe that suits a model: a `DetectorProbe` for detectors of mmdet's kind, else an `OutputProbe`.

    Procedural images have the style that suits its norms, which the `executor` finds.
    The other arguments and errors are those of `ConfigProbe`.
    """
    kind = DetectorProbe if hasattr(model, 'add_pred_to_datasample') else OutputProbe
    if folder is not None:
        return kind(config, count, seed, folder)
    few = few_images(*kind(config, 1, seed).describe()['size'])
    style = choose_style(model, lambda style: kind(config, few, seed, style=style), executor)
    return kind(config, count, seed, style=style)


class ConfigProbe(Probe):
    """Procedural images at the input size of a config, or images of a folder, through its test pipeline.

    Args:
        config: the model's, with a test pipeline.
        count: number of images; 0: by their size, or all of the folder up to the same number.
        seed: of the procedural images.
        folder: use these images instead.
        style: of the procedural images.

    Raises:
        RiemError: no test pipeline or no size in it, a negative count, or a folder without images.
    """

    counts = IMAGE_COUNTS
    most_at_once = MAX_BATCH

    def __init__(
        self,
        config: Config,
        count: int = 0,
        seed: int = 0,
        folder: str | os.PathLike | None = None,
        style: Style = PLAIN,
    ) -> None:
        if count < 0:
            raise RiemError(f'--image-count {count}: expected 0 (by their size) or more')
        init_default_scope(config.get('default_scope', 'mmdet'))
        steps, (width, height) = self._sized(config, procedural=folder is None)
        wanted = count or image_count(width, height, self.counts)
        if folder is None:
            self._images = list(procedural_images(wanted, height, width, seed, style))
            said = {'kind': 'procedural', 'seed': seed, 'size': [width, height], 'style': style.describe()}
        else:
            self._images = _files(folder)[:wanted]
            said = {'kind': 'folder', 'folder': Path(folder).name}
        self.images = len(self._images)
        self.batch = batch_size(width, height, self.most_at_once)
        self.pixels = width * height
        self._description = {**said, 'count': self.images}
        self._pipeline = Compose(steps)
        self._arguments = {'config': config, 'seed': seed, 'folder': folder, 'style': style}

    def others(self, steps: int) -> ConfigProbe:
        """See `Probe`; images of a folder have none."""
        if self._arguments['folder'] is not None:
            return self
        count, batch = training_images(*self._description['size'], steps)
        made = type(self)(**{**self._arguments, 'count': count, 'seed': self._arguments['seed'] + 1})
        made.batch = batch
        return made

    def describe(self) -> dict[str, Any]:
        return self._description

    def digest(self) -> str:
        """SHA-256 of the images, in hexadecimal; of procedural ones `describe` says all."""
        found = hashlib.sha256()
        for image in self._images:
            if isinstance(image, Path):
                found.update(hashlib.sha256(image.read_bytes()).digest())
        return found.hexdigest()

    @abstractmethod
    def _sized(self, config: Config, procedural: bool) -> tuple[list[dict[str, Any]], tuple[int, int]]:
        """The steps of the test pipeline once the image is read, and ``(width, height)`` of the images for it."""

    def _batch(self, model: nn.Module, first: int, last: int) -> dict[str, Any]:
        """Inputs and data samples of these images, as `model` predicts on."""
        samples = [self._pipeline(self._sample(number, _channels(model))) for number in range(first, last)]
        return model.data_preprocessor(pseudo_collate(samples), False)

    def _sample(self, number: int, channels: int) -> dict[str, Any]:
        """What a pipeline has once the image is read: ``(h, w)`` or, blue first, ``(h, w, 3)``, and its shape."""
        image = self._images[number]
        if isinstance(image, Path):
            read = cv2.imread(str(image), cv2.IMREAD_COLOR)
            if read is None:
                raise RiemError(f'{image}: expected an image, found something else; remove it from the folder')
        else:
            read = np.ascontiguousarray(image.permute(1, 2, 0).numpy())
        if channels == 1:
            read = cv2.cvtColor(read, cv2.COLOR_BGR2GRAY)
        shape = read.shape[:2]
        return {'img': read, 'img_shape': shape, 'ori_shape': shape, 'img_id': number, 'img_path': ''}


class DetectorProbe(ConfigProbe):
    """Images for a detector of mmdet, which runs as it predicts: second stages see the proposals of the first.

    Its outputs are those of its heads. Where a config's images have more than ``MAX_PIXELS``, procedural ones are
    smaller, at the same scale of a pixel: time and memory are proportional to the pixels, and dead leaves look the same
    at every scale.
    """

    counts = COUNTS
    most_at_once = COUNTS[1]

    def _sized(self, config: Config, procedural: bool) -> tuple[list[dict[str, Any]], tuple[int, int]]:
        steps = _pipeline(config)
        width, height = input_size(steps) or FALLBACK_SIZE
        if procedural and width * height > MAX_PIXELS:
            shrink = (MAX_PIXELS / (width * height)) ** 0.5
            width, height = int(width * shrink), int(height * shrink)
            steps = _resized(steps, (width, height))
        return steps, (width, height)

    def run(self, model: nn.Module, first: int, last: int) -> list[Tensor]:
        with _outputs_of_heads(model) as outputs, _every_box_passes(model):
            data = self._batch(model, first, last)
            model.predict(data['inputs'], data['data_samples'], rescale=False)
        if not outputs:
            raise RiemError(
                f'{type(model).__name__}: expected a module named ...head that is called when the detector '
                'predicts, found none; use --metric identity'
            )
        return outputs


class OutputProbe(ConfigProbe):
    """Images for any model of MMEngine whose raw output is what it predicts from: the logits of a classifier.

    That output is what `forward` gives in mode `tensor`.
    """

    def _sized(self, config: Config, procedural: bool) -> tuple[list[dict[str, Any]], tuple[int, int]]:
        steps = _pipeline(config)
        name = str(_dataset(config).get('type')).rpartition('.')[2]
        size = input_size(steps) or DATASET_SIZES.get(name)
        if size is None:
            raise RiemError(
                'config: expected a step with a scale or crop_size in the test pipeline, found none; add '
                "dict(type='mmriem.Resize', scale=...), or use --metric identity"
            )
        return steps, size

    def run(self, model: nn.Module, first: int, last: int) -> list[Tensor]:
        outputs = list(float_tensors(model(**self._batch(model, first, last), mode='tensor')))
        if not outputs:
            raise RiemError(
                f'{type(model).__name__}: expected tensors from forward in mode tensor, found none; '
                'use --metric identity'
            )
        return outputs


def input_size(steps: list[dict[str, Any]]) -> tuple[int, int] | None:
    """``(width, height)`` of the images that a test pipeline makes, as its first step with a scale or a crop tells.

    None where no step tells.

    >>> input_size([dict(type='Resize', scale=(1333, 800), keep_ratio=True)])
    (1333, 800)
    """
    for step in steps:
        scale = step.get('scale', step.get('crop_size'))
        scale = scale[0] if isinstance(scale, list) and scale and not isinstance(scale[0], int) else scale
        if isinstance(scale, int):
            return scale, scale
        if isinstance(scale, (tuple, list)) and len(scale) == 2 and min(scale) > 0:
            return int(scale[0]), int(scale[1])
    return None


def _resized(steps: list[dict[str, Any]], size: tuple[int, int]) -> list[dict[str, Any]]:
    """The steps with another size, that of images and that of their padding."""
    resized = []
    for step in steps:
        step = dict(step)
        if 'scale' in step:
            step['scale'] = size
        if step.get('size') is not None and str(step['type']).endswith('Pad'):
            step['size'] = size
        resized.append(step)
    return resized


def _pipeline(config: Config) -> list[dict[str, Any]]:
    """The steps of the test pipeline after the image is read, without those that want annotations."""
    steps = deepcopy(_dataset(config).get('pipeline') or config.get('test_pipeline'))
    if not steps:
        raise RiemError(
            'config: expected a test pipeline in test_dataloader.dataset, found none; use --metric identity'
        )
    plain = [dict(step) for step in steps]
    return [step for step in plain if 'LoadImage' not in str(step['type']) and 'Annotations' not in str(step['type'])]


def _dataset(config: Config) -> dict[str, Any]:
    """The test set of a config, without the sets that wrap it; empty where there is none."""
    dataset = (config.get('test_dataloader') or {}).get('dataset') or {}
    while 'pipeline' not in dataset and 'dataset' in dataset:
        dataset = dataset['dataset']
    return dataset


def _channels(model: nn.Module) -> int:
    """Of the images that a model takes: as many as its preprocessor has means, 3 where it has none."""
    mean = getattr(model.data_preprocessor, 'mean', None)
    return 1 if mean is not None and mean.numel() == 1 else 3


def _files(folder: str | os.PathLike) -> list[Path]:
    if not Path(folder).is_dir():
        raise RiemError(f'--images {folder}: expected a folder of images, found none of that name')
    files = sorted(path for path in Path(folder).rglob('*') if path.suffix.lower() in SUFFIXES and path.is_file())
    if not files:
        raise RiemError(f'--images {folder}: expected images ({", ".join(sorted(SUFFIXES))}), found none')
    return files


@contextmanager
def _outputs_of_heads(model: nn.Module) -> Iterator[list[Tensor]]:
    """The float tensors that heads return, of the outermost one where heads hold heads."""
    outputs: list[Tensor] = []
    depth = 0
    hooks = []

    def enter(module: nn.Module, inputs: Any) -> None:
        nonlocal depth
        depth += 1

    def leave(module: nn.Module, inputs: Any, output: Any) -> None:
        nonlocal depth
        depth -= 1
        if depth == 0:
            outputs.extend(float_tensors(output))

    for name, module in model.named_modules():
        if any(part.endswith('head') for part in name.split('.')):
            hooks += [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]
    try:
        yield outputs
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def _every_box_passes(model: nn.Module) -> Iterator[None]:
    """Second stages without a threshold on scores, so that the mask head sees the best boxes whatever they are.

    Masks are not pasted onto the image: nothing with a weight comes after them, and it takes gigabytes.
    """
    changed = []
    masks = [module for name, module in model.named_modules() if 'mask_head' in name.split('.')]
    masks = [module for module in masks if hasattr(module, 'predict_by_feat')]
    for module in masks:
        module.predict_by_feat = lambda mask_preds, results_list, *args, **kwargs: results_list
    for module in model.modules():
        settings = getattr(module, 'test_cfg', None)
        if 'roi_head' in dict(model.named_children()) and isinstance(settings, dict) and 'score_thr' in settings:
            changed.append((settings, dict(settings)))
            settings['score_thr'] = 0.0
            if masks:
                settings['max_per_img'] = min(MASKS, settings.get('max_per_img', MASKS))
    try:
        yield
    finally:
        for settings, before in reversed(changed):  # modules may share their settings
            settings.clear()
            settings.update(before)
        for module in masks:
            del module.predict_by_feat  # that of the class again
