"""Top-1 accuracy on labelled images."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from mmriem.core.errors import RiemError, os_reason
from mmriem.core.images.procedural import MEAN, STD

__all__ = ['LabelledImages', 'normalised', 'read_images', 'top1']


class LabelledImages(NamedTuple):
    """``images``, uint8 RGB ``(n, h, w, 3)`` or grey ``(n, h, w, 1)``, and their ``labels``, int64 ``(n,)``."""

    images: Tensor
    labels: Tensor


def read_images(path: str | os.PathLike) -> LabelledImages:
    """Read an ``.npz`` file with the images as ``X`` and the labels as ``Y``.

    Raises:
        RiemError: there is no such file, or it does not hold both in these shapes.
    """
    try:
        with np.load(path) as arrays:
            images, labels = arrays['X'], arrays['Y']
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise RiemError(
            f'{path}: expected an .npz file with the images X and the labels Y, found: {os_reason(error)}'
        ) from error
    good = images.dtype == np.uint8 and images.ndim == 4 and images.shape[3] in (1, 3)
    if not good or labels.shape != images.shape[:1]:
        raise RiemError(
            f'{path}: expected X of uint8 (n, h, w, 3 or 1) and Y (n,), '
            f'found {images.dtype} {images.shape} and {labels.shape}'
        )
    return LabelledImages(torch.from_numpy(images), torch.from_numpy(labels.astype(np.int64)))


def normalised(values: Tensor) -> Tensor:
    """What a network takes of pixels ``(n, 3, h, w)``, 0 to 1, by ImageNet's mean and spread."""
    return (values - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


@torch.no_grad()
def top1(
    model: nn.Module,
    data: LabelledImages,
    batch_size: int = 500,
    normalise: Callable[[Tensor], Tensor] = normalised,
) -> float:
    """Percent of the images whose largest logit is that of their label; the model is left in eval mode.

    Args:
        model: the network.
        data: the images.
        batch_size: how many run at a time.
        normalise: of pixels ``(n, channels, h, w)``, 0 to 1, makes what the network takes.
    """
    model.eval()
    right = sum(
        int((model(normalise(images.permute(0, 3, 1, 2).float() / 255)).argmax(1) == labels).sum())
        for images, labels in zip(data.images.split(batch_size), data.labels.split(batch_size))
    )
    return 100 * right / len(data.labels)
