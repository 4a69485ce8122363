"""Images for a model with a config, and its real way through them: test pipeline, backbone, proposals, second stage."""

from __future__ import annotations

import hashlib
import os
from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from inspect import signature
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData
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

from .config import scope_of
from .detector import metainfo_of
from .guard import guarded
from .pipeline import Pipeline, inner_test_set, input_size, pipeline_steps, resized, type_name

__all__ = ['ConfigProbe', 'DetectorProbe', 'OutputProbe', 'build_probe', 'input_size', 'probe_class']

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
    kind = probe_class(model)
    if folder is not None:
        return kind(config, count, seed, folder)
    few = few_images(*kind(config, 1, seed).describe()['size'])
    style = choose_style(model, lambda style: kind(config, few, seed, style=style), executor)
    return kind(config, count, seed, style=style)


def probe_class(model: nn.Module) -> type[ConfigProbe]:
    """`DetectorProbe` for detectors and trackers of mmdet's kind, else `OutputProbe`."""
    is_detector = hasattr(model, 'add_pred_to_datasample') or hasattr(model, 'tracker')
    return DetectorProbe if is_detector else OutputProbe


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
    without_metric = 'use --metric identity'

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
        init_default_scope(scope_of(config))
        steps, (width, height) = self._sized(config, procedural=folder is None)
        self._pipeline = Pipeline(steps, folder is not None, _texts(config))
        wanted = count or image_count(width, height, self.counts)
        if folder is None:
            self._images = list(procedural_images(wanted, height, width, seed, style))
            said = {'kind': 'procedural', 'seed': seed, 'size': [width, height], 'style': style.describe()}
        else:
            self._images = _files(folder, every=self._pipeline.reads_files)[:wanted]
            said = {'kind': 'folder', 'folder': Path(folder).name}
        self.images = len(self._images)
        self.batch = batch_size(width, height, self.most_at_once)
        self.pixels = width * height
        self._description = {**said, 'count': self.images}
        self._further: dict[int, Tensor] = {}
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

    def run(self, model: nn.Module, first: int, last: int) -> list[Tensor]:
        """See `Probe`.

        Raises:
            RiemError: the pipeline or the model cannot do it; the step or the module is named.
        """
        with guarded(model, 'run on images of its test pipeline'):
            return self._outputs(model, first, last)

    @abstractmethod
    def _outputs(self, model: nn.Module, first: int, last: int) -> list[Tensor]:
        """As `run`, unguarded."""

    def _batch(self, model: nn.Module, first: int, last: int) -> dict[str, Any]:
        """Inputs and data samples of these images, as `model` predicts on."""
        samples = [self._pipeline(self._sample(number, _channels(model))) for number in range(first, last)]
        return model.data_preprocessor(pseudo_collate(samples), False)

    def _sample(self, number: int, channels: int) -> dict[str, Any]:
        """What a pipeline has once the image is read, ``(h, w)`` or, blue first, ``(h, w, channels)``."""
        image = self._images[number]
        if isinstance(image, Tensor):
            planes = torch.cat([image, *self._more_planes(number, channels)]) if channels > 3 else image
            read = np.ascontiguousarray(planes[: 3 if channels == 1 else channels].permute(1, 2, 0).numpy())
            path = f'procedural image {number}'
        elif self._pipeline.reads_files:
            read, path = np.zeros((1, 1, channels), np.uint8), str(image)  # a step reads it
        else:
            read, path = _read(image, channels), str(image)
        if channels == 1 and read.ndim == 3 and read.shape[2] == 3:
            read = cv2.cvtColor(read, cv2.COLOR_BGR2GRAY)
        return self._pipeline.sample(read, number, path)

    def _more_planes(self, number: int, channels: int) -> list[Tensor]:
        """Planes beyond three: half the image's own light, half another image, so that they differ and go together."""
        size, seed = self._description['size'], self._arguments['seed']
        for group in range(1, -(-channels // 3)):
            if group not in self._further:
                other = procedural_images(self.images, size[1], size[0], seed + (group << 32), self._arguments['style'])
                own = torch.stack(self._images).float().mean(1, keepdim=True)
                self._further[group] = ((own + other) / 2).to(torch.uint8)
        return [planes[number] for planes in self._further.values()][: -(-channels // 3) - 1]


class DetectorProbe(ConfigProbe):
    """Images for a detector of mmdet, which runs as it predicts: second stages see the proposals of the first.

    Its outputs are those of its heads. Where a config's images have more than ``MAX_PIXELS``, procedural ones are
    smaller, at the same scale of a pixel: time and memory are proportional to the pixels, and dead leaves look the same
    at every scale.
    """

    counts = COUNTS
    most_at_once = COUNTS[1]

    def _sized(self, config: Config, procedural: bool) -> tuple[list[dict[str, Any]], tuple[int, int]]:
        steps = pipeline_steps(config)
        width, height = input_size(steps) or FALLBACK_SIZE
        if procedural and width * height > MAX_PIXELS:
            shrink = (MAX_PIXELS / (width * height)) ** 0.5
            width, height = int(width * shrink), int(height * shrink)
            steps = resized(steps, (width, height))
        return steps, (width, height)

    def _outputs(self, model: nn.Module, first: int, last: int) -> list[Tensor]:
        takes = signature(model.predict).parameters
        options = {'rescale': False} if 'rescale' in takes else {}
        videos = [(number, number + 1) for number in range(first, last)] if self._pipeline.is_video else [(first, last)]
        with _outputs_of_heads(model) as outputs, _every_box_passes(model):
            for part in videos:  # trackers take one at a time
                data = self._batch(model, *part)
                model.predict(data['inputs'], data['data_samples'], **options)
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
        steps = pipeline_steps(config)
        size = input_size(steps) or DATASET_SIZES.get(type_name(inner_test_set(config)))
        if size is None:
            raise RiemError(
                'config: expected a step with a scale or crop_size in the test pipeline, found none; add '
                "dict(type='mmriem.Resize', scale=...), or use --metric identity"
            )
        return steps, size

    def _outputs(self, model: nn.Module, first: int, last: int) -> list[Tensor]:
        outputs = list(float_tensors(model(**self._batch(model, first, last), mode='tensor')))
        if not outputs:
            raise RiemError(
                f'{type(model).__name__}: expected tensors from forward in mode tensor, found none; '
                'use --metric identity'
            )
        return outputs


def _channels(model: nn.Module) -> int:
    """Of the images that a model takes: as many as its preprocessor has means, 3 where it has none."""
    mean = getattr(model.data_preprocessor, 'mean', None)
    return 3 if mean is None else mean.numel()


def _texts(config: Config) -> dict[str, Any]:
    """What a data set adds to each sample for a detector that reads: the names of the classes."""
    dataset = inner_test_set(config)
    if not dataset.get('return_classes'):
        return {}
    return {'text': tuple(metainfo_of(dataset).get('classes') or ('object',)), 'custom_entities': True}


def _files(folder: str | os.PathLike, every: bool) -> list[Path]:
    """The images of a folder, or, where a step of the config's own reads them, every file."""
    if not Path(folder).is_dir():
        raise RiemError(f'--images {folder}: expected a folder of images, found none of that name')
    files = sorted(
        path
        for path in Path(folder).rglob('*')
        if (every or path.suffix.lower() in SUFFIXES) and path.is_file() and not path.name.startswith('.')
    )
    if not files:
        raise RiemError(f'--images {folder}: expected images ({", ".join(sorted(SUFFIXES))}), found none')
    return files


def _read(path: Path, channels: int) -> np.ndarray:
    read = cv2.imread(str(path), cv2.IMREAD_COLOR if channels in (1, 3) else cv2.IMREAD_UNCHANGED)
    if read is None:
        raise RiemError(f'{path}: expected an image, found something else; remove it from the folder')
    found = 1 if read.ndim == 2 else read.shape[2]
    if channels not in (1, 3) and found != channels:
        raise RiemError(f'{path}: expected an image of {channels} channels, found {found}; remove it from the folder')
    return read


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
    """What sees the boxes of another head sees the best ones whatever their scores: there is no threshold on them.

    Masks are not pasted onto the image: nothing with a weight comes after them, and it takes gigabytes.
    """
    changed = []
    names = [(name.split('.'), module) for name, module in model.named_modules()]
    masks = [module for parts, module in names if 'mask_head' in parts and hasattr(module, 'predict_by_feat')]
    for module in masks:
        module.predict_by_feat = _without_pasting(module.predict_by_feat)
    stages = [module for module in model.modules() if _has_stages(module)]
    for module in {id(inner): inner for stage in stages for inner in stage.modules()}.values():
        settings = getattr(module, 'test_cfg', None)
        if isinstance(settings, dict) and 'score_thr' in settings:
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


def _has_stages(module: nn.Module) -> bool:
    """Whether one head of a detector works on the boxes of another."""
    children = dict(module.named_children())
    return 'roi_head' in children or {'bbox_head', 'mask_head'} <= set(children)


def _without_pasting(predict_by_feat: Callable) -> Callable:
    """In place of a mask head's: the instances as they are given, or, where the head finds them itself, none."""
    takes = signature(predict_by_feat)

    def given(*args: Any, **kwargs: Any) -> list[InstanceData]:
        found = takes.bind(*args, **kwargs).arguments
        results = found.get('results_list')
        return [InstanceData() for _ in found['batch_img_metas']] if results is None else results

    return given
