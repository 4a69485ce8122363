"""Images for a model with a config, and its real way through them: test pipeline, backbone, proposals, second stage."""

from __future__ import annotations

import copy
import hashlib
import os
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from inspect import signature
from pathlib import Path
from typing import Any, cast

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
    Output,
    Probe,
    batch_size,
    float_tensors,
    image_count,
    training_images,
)
from mmriem.core.images.procedural import PLAIN, Style, procedural_images
from mmriem.core.images.style_search import choose_style, few_images
from mmriem.core.images.synthesis import RandomClasses, planned_steps, synthesise
from mmriem.core.live.complexity import count_macs

from .config import scope_of
from .detector import metainfo_of
from .guard import guarded
from .judgement import head_outputs, unknown_heads
from .pipeline import Pipeline, inner_test_set, input_size, pipeline_steps, resized, type_name

__all__ = ['ConfigProbe', 'DetectorProbe', 'OutputProbe', 'build_probe', 'input_size', 'probe_class']

COUNTS = (8, 64)
"""Least and most images for a detector, of which each has many outputs."""
JUDGED = 4
"""Factor on the number of images where errors are judged as detection is: few places of an image count then."""
SUFFIXES = {'.jpg', '.jpeg', '.png', '.bmp', '.tif', '.tiff', '.webp'}
FALLBACK_SIZE = (640, 480)
"""``(width, height)`` of images for a config whose test pipeline names no size."""
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
    synthesis: int | None = 0,
    judges: bool = False,
) -> ConfigProbe:
    """The probe that suits a model: a `DetectorProbe` for detectors of mmdet's kind, else an `OutputProbe`.

    Procedural images have the style that suits its norms, which the `executor` finds. They are to be optimised by
    `synthesis` steps, see `ConfigProbe.synthesise`; None: as many as `mmriem.core.images.synthesis` takes for it, 0:
    none. The other arguments and errors are those of `ConfigProbe`.

    Raises:
        RiemError: steps of synthesis below 0, or for images of a folder or a model that tells nothing to optimise for;
            a model to judge whose outputs are not those of a detector.
    """
    kind = probe_class(model)
    if judges and not issubclass(kind, DetectorProbe):
        raise RiemError(f'--metric task: expected a detector, found {type(model).__name__}; leave it out')
    if folder is not None:
        if synthesis:
            raise RiemError(f'synthesis {synthesis}: expected procedural images, found --images; leave one out')
        probe = kind(config, count, seed, folder, judges=judges)
    else:
        few = few_images(*kind(config, 1, seed).describe()['size'])
        style = choose_style(model, lambda style: kind(config, few, seed, style=style), executor)
        probe = kind(config, count, seed, style=style, judges=judges)
        probe.plan(model, synthesis)
    if judges:
        probe.name_unknown_heads(model)
    return probe


def probe_class(model: nn.Module) -> type[ConfigProbe]:
    """`DetectorProbe` for detectors and trackers of mmdet's kind, else `OutputProbe`."""
    is_detector = any(hasattr(model, name) for name in ('add_pred_to_datasample', 'tracker', 'with_tracker'))
    return DetectorProbe if is_detector else OutputProbe


class ConfigProbe(Probe):
    """Procedural images at the input size of a config, or images of a folder, through its test pipeline.

    Args:
        config: the model's, with a test pipeline.
        count: number of images; 0: by their size, or all of the folder up to the same number.
        seed: of the procedural images.
        folder: use these images instead.
        style: of the procedural images.
        judges: whether errors of outputs count as detection is judged, see `judgement`; it takes more images.

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
        judges: bool = False,
    ) -> None:
        if count < 0:
            raise RiemError(f'--image-count {count}: expected 0 (by their size) or more')
        init_default_scope(scope_of(config))
        steps, (width, height) = self._sized(config, procedural=folder is None)
        self._pipeline = Pipeline(steps, folder is not None, _texts(config))
        usual = image_count(width, height, self.counts)
        wanted = count or (min(JUDGED * usual, self.counts[1]) if judges else usual)
        if folder is None:
            self._images = list(procedural_images(wanted, height, width, seed, style))
            said = {'kind': 'procedural', 'seed': seed, 'size': [width, height], 'style': style.describe()}
        else:
            self._images = _files(folder, every=self._pipeline.reads_files)[:wanted]
            said = {'kind': 'folder', 'folder': Path(folder).name}
        self.images = len(self._images)
        self.batch = batch_size(width, height, self.most_at_once)
        self.pixels = width * height
        self._description: dict[str, Any] = {**said, 'count': self.images, **({'outputs': 'task'} if judges else {})}
        self.judges = judges
        self._steps = 0
        self._made: dict[int, Tensor] | None = None
        self._further: dict[int, Tensor] = {}
        self._arguments: dict[str, Any] = {
            'config': config,
            'seed': seed,
            'folder': folder,
            'style': style,
            'judges': judges,
        }

    def plan(self, model: nn.Module, steps: int | None) -> None:
        """Say that :meth:`synthesise` is to take so many steps; None: as many as it takes for this model.

        Raises:
            RiemError: the model holds nothing that images could be optimised for.
        """
        start = self._start(model)
        if start is None:
            if steps:
                raise RiemError(f'synthesis {steps}: expected a pipeline that packs images, found others; leave it out')
            return
        own = copy.deepcopy(model)
        own.eval()
        macs = lambda: count_macs(own, lambda: self.run(own, 0, 1)).total  # noqa: E731
        self._steps = planned_steps(own, steps, start, self._run_pixels, macs)
        if self._steps:
            self._description = {**self._description, 'kind': 'synthetic', 'steps': self._steps}

    def synthesise(
        self,
        model: nn.Module,
        executor: Executor | None = None,
        device: str = 'cpu',
        on_progress: Callable[[float], None] | None = None,
    ) -> None:
        """Optimise the images as was planned, see `mmriem.core.images.synthesis`; without a plan they stay.

        Args:
            model: the original one; it is not changed.
            executor: who works; a journal keeps the images.
            device: where.
            on_progress: called with the share that is done.
        """
        start = self._start(model) if self._steps else None
        if start is None:
            return
        width, height = self._description['size']
        made = synthesise(
            copy.deepcopy(model).to(device),
            start,
            self._run_pixels,
            RandomClasses(self.images, self._arguments['seed']),
            self._steps,
            batch_size(width, height, self.most_at_once),
            seed=self._arguments['seed'],
            executor=executor,
            on_progress=on_progress,
        )
        self._made = dict(enumerate(made))

    def pictures(self, model: nn.Module, most: int) -> list[np.ndarray]:
        """The first images, ``(h, w, 3)`` red first or ``(h, w)``, uint8, before the model's own normalisation."""
        return [self.picture(model, number) for number in range(min(most, self.images))]

    def picture(self, model: nn.Module, number: int) -> np.ndarray:
        """One image, see :meth:`pictures`."""
        if self._made is not None:
            image = self._made[number].permute(1, 2, 0).numpy()
        else:
            image = self._sample(number, _channels(model))['img']
        return _shown(image, self._pipeline.loader.get('channel_order') == 'rgb')

    def name(self, number: int) -> str:
        """Of an image: that of its file, or its number."""
        image = self._images[number]
        return image.name if isinstance(image, Path) else f'{self._description["kind"]} {number}'

    def name_unknown_heads(self, model: nn.Module) -> None:
        """Say of which heads errors cannot be judged, see `judgement`."""

    def _start(self, model: nn.Module) -> Tensor | None:
        """All images as the test pipeline makes them, bytes; None where it makes something else."""
        if self._arguments['folder'] is not None:
            return None
        packed = [self._pipeline(self._sample(number, _channels(model))) for number in range(self.images)]
        found = [sample.get('inputs') if isinstance(sample, Mapping) else None for sample in packed]
        images = [its for its in found if isinstance(its, Tensor) and its.dtype == torch.uint8 and its.dim() == 3]
        if len(images) < len(found) or len({image.shape for image in images}) != 1:
            return None
        return torch.stack(images)

    def _run_pixels(self, model: nn.Module, pixels: Tensor, first: int) -> list[Tensor]:
        own = copy.copy(self)
        own._made = dict(enumerate(pixels * 255, first))
        return own.run(model, first, first + len(pixels))

    def others(self, steps: int) -> ConfigProbe:
        """See `Probe`; images of a folder have none."""
        if self._arguments['folder'] is not None:
            return self
        width, height = self._description['size']
        count, batch = training_images(width, height, steps)
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
        if self._made is not None:
            samples = [{**sample, 'inputs': self._made[number]} for number, sample in enumerate(samples, first)]
        preprocess = cast(Callable[..., Any], model.data_preprocessor)
        return preprocess(pseudo_collate(samples), False)

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

    def predictions(self, model: nn.Module, first: int, last: int) -> list[Any]:
        """Data samples with what the model finds on these images, in pixels of the images as they were read.

        Raises:
            RiemError: the pipeline or the model cannot do it.
        """
        with guarded(model, 'predict on images of its test pipeline', remedy='evaluate it with mmriem test'):
            data = self._batch(model, first, last)
            predict = cast(Callable[..., list[Any]], model.predict)
            return predict(data['inputs'], data['data_samples'])

    def judged(self, model: nn.Module, first: int, last: int) -> list[Output]:
        """See `Probe`."""
        if not self.judges:
            return super().judged(model, first, last)
        with guarded(model, 'run on images of its test pipeline'):
            return head_outputs(self._said(model, first, last))

    def name_unknown_heads(self, model: nn.Module) -> None:
        """See `ConfigProbe`."""
        own = copy.deepcopy(model)
        own.eval()
        with torch.no_grad(), guarded(own, 'run on images of its test pipeline'):
            unknown = unknown_heads(self._said(own, 0, 1))
        if unknown:
            self._description = {**self._description, 'heads that cannot be judged': unknown}

    def _outputs(self, model: nn.Module, first: int, last: int) -> list[Tensor]:
        return [tensor for _, returned in self._said(model, first, last) for tensor in float_tensors(returned)]

    def _said(self, model: nn.Module, first: int, last: int) -> list[tuple[nn.Module, Any]]:
        """The heads and what they return."""
        predict = cast(Callable[..., Any], model.predict)
        takes = signature(predict).parameters
        options = {'rescale': False} if 'rescale' in takes else {}
        videos = [(number, number + 1) for number in range(first, last)] if self._pipeline.is_video else [(first, last)]
        with _said_by_heads(model) as said, _every_box_passes(model):
            for part in videos:  # trackers take one at a time
                data = self._batch(model, *part)
                predict(data['inputs'], data['data_samples'], **options)
        if not any(True for _, returned in said for _ in float_tensors(returned)):
            raise RiemError(
                f'{type(model).__name__}: expected a module named ...head that is called when the detector '
                'predicts, found none; use --metric identity'
            )
        return said


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


def _shown(image: np.ndarray, is_red_first: bool) -> np.ndarray:
    """As bytes, red first; of many channels the first one, grey."""
    image = image.clip(0, 255).astype(np.uint8)
    if image.ndim == 3 and image.shape[2] != 3:
        return image[..., 0]
    return image if image.ndim == 2 or is_red_first else image[..., ::-1]


def _texts(config: Config) -> dict[str, Any]:
    """What a data set adds to each sample for a detector that reads: the names of the classes."""
    dataset = inner_test_set(config)
    if not dataset.get('return_classes'):
        return {}
    return {'text': tuple(metainfo_of(dataset).get('classes') or ('object',)), 'custom_entities': True}


def _files(folder: str | os.PathLike, every: bool) -> list[Path]:
    """The images of a folder, or, where a step of the config's own reads them, every file."""
    if not os.path.isdir(folder):  # False for names that no folder can have
        raise RiemError(f'--images {folder}: expected a folder of images, found none of that name')
    shown = (path for path in Path(folder).rglob('*') if not _is_hidden(path.relative_to(folder)))
    files = sorted(path for path in shown if (every or path.suffix.lower() in SUFFIXES) and path.is_file())
    if not files:
        raise RiemError(f'--images {folder}: expected images ({", ".join(sorted(SUFFIXES))}), found none')
    return files


def _is_hidden(path: Path) -> bool:
    """Whether it is, or lies in a folder that is, as the companions are that some systems put beside images."""
    return any(part.startswith('.') for part in path.parts)


def _read(path: Path, channels: int) -> np.ndarray:
    read = cv2.imread(str(path), cv2.IMREAD_COLOR if channels in (1, 3) else cv2.IMREAD_UNCHANGED)
    if read is None:
        raise RiemError(f'{path}: expected an image, found something else; remove it from the folder')
    found = 1 if read.ndim == 2 else read.shape[2]
    if channels not in (1, 3) and found != channels:
        raise RiemError(f'{path}: expected an image of {channels} channels, found {found}; remove it from the folder')
    return read


@contextmanager
def _said_by_heads(model: nn.Module) -> Iterator[list[tuple[nn.Module, Any]]]:
    """Heads, and what they return, in the order of their calls: the outermost one where heads hold heads."""
    said: list[tuple[nn.Module, Any]] = []
    depth = 0
    hooks = []

    def enter(module: nn.Module, inputs: Any) -> None:
        nonlocal depth
        depth += 1

    def leave(module: nn.Module, inputs: Any, output: Any) -> None:
        nonlocal depth
        depth -= 1
        if depth == 0:
            said.append((module, output))

    for name, module in model.named_modules():
        if any(part.endswith('head') for part in name.split('.')):
            hooks += [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]
    try:
        yield said
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
    """In place of a mask head's: the instances it is given, with empty masks; none where the head finds them itself."""
    takes = signature(predict_by_feat)

    def given(*args: Any, **kwargs: Any) -> list[InstanceData]:
        found = takes.bind(*args, **kwargs).arguments
        metas, results = found['batch_img_metas'], found.get('results_list')
        if results is None:
            return [InstanceData() for _ in metas]
        for instances, meta in zip(results, metas):
            shape = meta['ori_shape' if found.get('rescale') else 'img_shape'][:2]
            instances.masks = instances.bboxes.new_zeros((), dtype=torch.bool).expand(len(instances), *shape)
        return results

    return given
