"""The test pipeline of a config without what reads files: its steps, and what they start from."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import suppress
from copy import deepcopy
from typing import Any

import cv2
import numpy as np
from mmengine.config import Config
from mmengine.registry import TRANSFORMS

from mmriem.core.errors import RiemError

from .config import registered
from .guard import in_one_line

__all__ = ['Pipeline', 'inner_test_set', 'input_size', 'pipeline_steps', 'resized', 'type_name']

INNER = 'transforms'
"""Key of a step under which it holds other steps."""
PROPOSALS = 300
"""Random boxes of an image, for detectors whose proposals come with the data."""


class Pipeline:
    """The steps of a test pipeline that come after the image is read.

    Args:
        steps: all steps, as `pipeline_steps` gives them.
        with_files: images come from files that the steps themselves read, where a loader is not of a known kind.
        texts: what the data set adds to each sample, see `sample`.

    Raises:
        RiemError: a step cannot be built, or it reads files and `with_files` is not given.
    """

    def __init__(self, steps: list[dict[str, Any]], with_files: bool = False, texts: dict | None = None) -> None:
        flat = list(_flat(steps))
        self.loader = next((step for step in flat if _reads_image(step)), {})
        own = next((step for step in flat if _is_own_loader(step)), None)
        if own is not None and not with_files:
            raise RiemError(
                f'test pipeline: expected images to be read by LoadImageFromFile or a Load...Image... like it, found '
                f'{type_name(own)}, which may read anything; give images that it reads with --images DIR, or use '
                '--metric identity'
            )
        self.reads_files = own is not None
        self.is_video = any(type_name(step) == 'PackTrackInputs' for step in flat)
        self._texts = {'proposals': None, **(texts or {})}
        if not any(type_name(step) == 'LoadProposals' for step in flat):
            del self._texts['proposals']
        kept = [step for step in map(_without_loaders, steps) if step is not None]
        self._steps = [(type_name(step), _built(number, step)) for number, step in enumerate(kept, 1)]

    def __call__(self, sample: dict[str, Any]) -> Any:
        """What the steps make of a sample.

        Raises:
            RiemError: one of them fails; it is named.
        """
        if self.is_video:
            told = {'frame_id': 0, 'video_id': 0, 'video_length': 1, 'ori_video_length': 1, 'is_video_data': True}
            sample = {key: [value] for key, value in {**sample, **told}.items()}
        for number, (name, step) in enumerate(self._steps, 1):
            try:
                sample = step(sample)
            except RiemError:
                raise
            except Exception as error:  # steps are anybody's code
                raise _failure(number, name, error, reads=not self.loader) from error
            if sample is None:
                raise RiemError(
                    f'test pipeline: expected step {number}, {name}, to keep the image, found that it rejects it; '
                    'use --metric identity'
                )
        return sample

    def sample(self, image: np.ndarray, number: int, path: str = '') -> dict[str, Any]:
        """What a data set and its loader give for an image ``(h, w)`` or, blue first, ``(h, w, channels)``."""
        shape = image.shape[:2]
        if self.loader.get('color_type') == 'grayscale' and image.ndim == 3 and image.shape[2] == 3:
            image = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
        if self.loader.get('channel_order') == 'rgb' and image.ndim == 3:
            image = np.ascontiguousarray(image[..., ::-1])
        if self.loader.get('to_float32'):
            image = image.astype(np.float32)
        told = dict(self._texts)
        if 'proposals' in told:
            told['proposals'] = _random_boxes(shape, number)
        return {
            **told,
            'img': image,
            'img_shape': shape,
            'ori_shape': shape,
            'height': shape[0],
            'width': shape[1],
            'img_id': number,
            'img_path': path,
        }


def pipeline_steps(config: Config) -> list[dict[str, Any]]:
    """The steps of the test pipeline, those of an inner data set first.

    Raises:
        RiemError: there are none.
    """
    dataset: dict[str, Any] | None = _test_set(config)
    steps: list[dict[str, Any]] = []
    while dataset:
        steps = [*(dataset.get('pipeline') or []), *steps]
        dataset = _inner(dataset)
    steps = deepcopy(steps or config.get('test_pipeline'))
    if not steps:
        raise RiemError(
            'config: expected a test pipeline in test_dataloader.dataset, found none; use --metric identity'
        )
    return [dict(step) for step in steps]


def inner_test_set(config: Config) -> dict[str, Any]:
    """The settings of a config's test set, of the first one where it has several; empty where it has none."""
    dataset = _test_set(config)
    while inner := _inner(dataset):
        dataset = inner
    return dataset


def _test_set(config: Config) -> dict[str, Any]:
    """The settings of a config's test set, which may be a wrapper; of the first loader where there is a list."""
    loader = config.get('test_dataloader') or {}
    loader = loader[0] if isinstance(loader, (list, tuple)) else loader
    return loader.get('dataset') or {}


def type_name(step: Any) -> str:
    """Name of the class of a step or another entry of a config: a text with or without scope, or the class."""
    kind = step.get('type') if hasattr(step, 'get') else step
    return getattr(kind, '__name__', str(kind)).rpartition('.')[2]


def input_size(steps: list[dict[str, Any]]) -> tuple[int, int] | None:
    """``(width, height)`` of the images that a test pipeline makes, as its first step with a scale or a crop tells.

    None where no step tells.

    >>> input_size([dict(type='Resize', scale=(1333, 800), keep_ratio=True)])
    (1333, 800)
    """
    for step in _flat(steps):
        scale = step.get('scale', step.get('crop_size'))
        scale = scale[0] if isinstance(scale, list) and scale and not isinstance(scale[0], int) else scale
        if isinstance(scale, int):
            return scale, scale
        if isinstance(scale, (tuple, list)) and len(scale) == 2 and min(scale) > 0:
            return _bounded(*scale)
    return None


def resized(steps: list[dict[str, Any]], size: tuple[int, int]) -> list[dict[str, Any]]:
    """The steps with another size, that of images and that of their padding."""
    changed = []
    for step in steps:
        step = dict(step)
        if _has_steps(step):
            step[INNER] = resized(step[INNER], size)
        if 'scale' in step:
            step['scale'] = size
        if step.get('size') is not None and type_name(step).endswith('Pad'):
            step['size'] = size
        changed.append(step)
    return changed


def _bounded(width: float, height: float) -> tuple[int, int] | None:
    """A side without a bound, such as 1e9 beside 800, is as long as images are: 4 by 3; None where both have none.

    >>> _bounded(10**9, 96), _bounded(96, math.inf), _bounded(1333, 800)
    ((128, 96), (96, 128), (1333, 800))
    """
    short, long = sorted((width, height))
    if not math.isfinite(short):
        return None
    long = min(long, int(short) * 4 // 3) if long > 16 * short else long
    return (int(long), int(short)) if width > height else (int(short), int(long))


def _inner(dataset: dict[str, Any]) -> dict[str, Any] | None:
    """The set that a wrapper holds, the first one of several."""
    several = dataset.get('datasets') or [None]
    return dataset.get('dataset') or several[0]


def _has_steps(step: Any) -> bool:
    inner = step.get(INNER) if hasattr(step, 'get') else None
    return isinstance(inner, (list, tuple)) and all(hasattr(entry, 'get') and 'type' in entry for entry in inner)


def _flat(steps: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """All steps in the order in which they run, those within others too."""
    for step in steps:
        yield step
        if _has_steps(step):
            yield from _flat(step[INNER])


def _without_loaders(step: dict[str, Any]) -> dict[str, Any] | None:
    """A step without what reads images and annotations; None where nothing is left."""
    name = type_name(step)
    if _reads_image(step) or 'Annotations' in name:
        return None
    if not _has_steps(step):
        return step
    kept = [inner for inner in map(_without_loaders, step[INNER]) if inner is not None]
    return {**step, INNER: kept} if kept else None


def _reads_image(step: dict[str, Any]) -> bool:
    """Whether a step makes pixels of a file's name, in a way for which an array may stand in."""
    name, kind = type_name(step), step.get('type')
    with suppress(Exception):  # what cannot be found is told when it is built
        kind = registered(TRANSFORMS, kind)
    is_known = any(base.__name__ == 'LoadImageFromFile' for base in getattr(kind, '__mro__', ()))
    return is_known or (name.startswith('Load') and 'Image' in name)


def _is_own_loader(step: dict[str, Any]) -> bool:
    name = type_name(step)
    is_known = _reads_image(step) or any(word in name for word in ('Annotation', 'Proposals', 'Empty'))
    return 'Load' in name and not is_known


def _built(number: int, step: dict[str, Any]) -> Any:
    try:
        return TRANSFORMS.build(step)
    except RiemError:
        raise
    except Exception as error:  # a package that is missing, an argument that the class lacks, ...
        raise _failure(number, type_name(step), error) from error


def _failure(number: int, name: str, error: Exception, reads: bool = False) -> RiemError:
    """What to tell of a step; one that may read files, since no loader is there, takes them of a folder."""
    remedy = 'give images that it reads with --images DIR' if reads else 'mend the config'
    return RiemError(
        f'test pipeline: expected step {number}, {name}, to run on an image, found {in_one_line(error)}; {remedy}, or '
        'use --metric identity'
    )


def _random_boxes(shape: tuple[int, int], number: int) -> dict[str, np.ndarray]:
    """Boxes of all sizes and places, as a file of proposals has them."""
    random = np.random.default_rng(number)
    centre, side = random.random((PROPOSALS, 2)), random.random((PROPOSALS, 2)) ** 2
    corners = np.clip(np.concatenate([centre - side / 2, centre + side / 2], 1), 0, 1)
    boxes = corners * (shape[1], shape[0], shape[1], shape[0])
    return {'bboxes': boxes.astype(np.float32), 'scores': random.random(PROPOSALS).astype(np.float32)}
