"""Steps of the pipelines of image classification: images are uint8 arrays, blue first, as OpenCV reads them.

Each step is called with a dict that has the image as `img`, `(h, w)`, `(h, w, 1)` or `(h, w, 3)`, and returns it.
Random ones draw from numpy's generator, which MMEngine seeds in each worker.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import torch
from mmengine.structures import BaseDataElement

from mmriem.core.errors import RiemError
from mmriem.registry import TRANSFORMS

__all__ = ['CenterCrop', 'LoadImage', 'PackImage', 'RandomCrop', 'RandomFlip', 'Resize']

INTERPOLATIONS = {'bilinear': cv2.INTER_LINEAR, 'bicubic': cv2.INTER_CUBIC}


@TRANSFORMS.register_module()
class LoadImage:
    """Reads the file `img_path`.

    Raises:
        RiemError: it is not an image.
    """

    def __call__(self, results: dict[str, Any]) -> dict[str, Any]:
        """See the class."""
        image = cv2.imread(results['img_path'], cv2.IMREAD_COLOR)
        if image is None:
            raise RiemError(f'{results["img_path"]}: expected an image, found none; fetch it again')
        return {**results, 'img': image}


@TRANSFORMS.register_module()
class Resize:
    """Scales the image.

    Args:
        scale: `(width, height)`, or the length of the shorter side.
        interpolation: `bilinear` or `bicubic`.
    """

    def __init__(self, scale: int | tuple[int, int], interpolation: str = 'bilinear') -> None:
        if interpolation not in INTERPOLATIONS:
            raise RiemError(f'interpolation: expected bilinear or bicubic, found {interpolation!r}')
        self.scale, self.interpolation = scale, INTERPOLATIONS[interpolation]

    def __call__(self, results: dict[str, Any]) -> dict[str, Any]:
        """See the class."""
        image = results['img']
        height, width = image.shape[:2]
        size = self.scale
        if isinstance(size, int):
            size = tuple(round(side * size / min(width, height)) for side in (width, height))
        if tuple(size) != (width, height):
            image = cv2.resize(image, tuple(size), interpolation=self.interpolation)
        return {**results, 'img': image}


@TRANSFORMS.register_module()
class CenterCrop:
    """Cuts a square of `crop_size` out of the middle.

    Raises:
        RiemError: the image is smaller.
    """

    def __init__(self, crop_size: int) -> None:
        self.size = crop_size

    def __call__(self, results: dict[str, Any]) -> dict[str, Any]:
        """See the class."""
        height, width = results['img'].shape[:2]
        return {**results, 'img': _cut(results['img'], (height - self.size) // 2, (width - self.size) // 2, self.size)}


@TRANSFORMS.register_module()
class RandomCrop:
    """Surrounds the image with `padding` black pixels and cuts a square of `crop_size` out anywhere.

    Raises:
        RiemError: the image is smaller.
    """

    def __init__(self, crop_size: int, padding: int = 0) -> None:
        self.size, self.padding = crop_size, padding

    def __call__(self, results: dict[str, Any]) -> dict[str, Any]:
        """See the class."""
        around = (self.padding, self.padding)
        image = np.pad(results['img'], (around, around, *[(0, 0)] * (results['img'].ndim - 2)))
        top, left = (np.random.randint(max(side - self.size, 0) + 1) for side in image.shape[:2])
        return {**results, 'img': _cut(image, top, left, self.size)}


@TRANSFORMS.register_module()
class RandomFlip:
    """Mirrors the image, left to right, with the probability `prob`."""

    def __init__(self, prob: float = 0.5) -> None:
        self.prob = prob

    def __call__(self, results: dict[str, Any]) -> dict[str, Any]:
        """See the class."""
        return {**results, 'img': results['img'][:, ::-1]} if np.random.rand() < self.prob else results


@TRANSFORMS.register_module()
class PackImage:
    """Makes what the model takes: `inputs`, uint8 `(channels, h, w)`, and `data_samples`, with `gt_label` `(1,)`."""

    def __call__(self, results: dict[str, Any]) -> dict[str, Any]:
        """See the class."""
        image = results['img']
        planes = np.ascontiguousarray(image[None] if image.ndim == 2 else image.transpose(2, 0, 1))
        sample = BaseDataElement(metainfo={'img_path': results.get('img_path', '')})
        if 'gt_label' in results:
            sample.gt_label = torch.tensor([results['gt_label']])
        return {'inputs': torch.from_numpy(planes), 'data_samples': sample}


def _cut(image: np.ndarray, top: int, left: int, size: int) -> np.ndarray:
    if min(image.shape[:2]) < size:
        raise RiemError(f'crop: expected an image of {size} x {size} or more, found {image.shape[:2]}; resize it first')
    return image[top : top + size, left : left + size]
