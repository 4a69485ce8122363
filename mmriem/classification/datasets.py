"""Data sets of labelled images for MMEngine: MNIST, CIFAR-10 and -100, folders in the layout of ImageNet, digits.

Items have the image as `img` (uint8, blue first, as OpenCV reads them) or its file as `img_path`, and `gt_label`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.dataset import BaseDataset

from mmriem.core.errors import RiemError
from mmriem.registry import DATASETS

from .evaluation import LabelledImages
from .readers import read_cifar10, read_cifar100, read_mnist

__all__ = ['CIFAR10', 'CIFAR100', 'MNIST', 'Digits', 'ImageFolder']

DIGITS = tuple('0123456789')
CIFAR10_CLASSES = ('airplane', 'automobile', 'bird', 'cat', 'deer', 'dog', 'frog', 'horse', 'ship', 'truck')
CIFAR100_CLASSES = (
    *('apple', 'aquarium_fish', 'baby', 'bear', 'beaver', 'bed', 'bee', 'beetle', 'bicycle', 'bottle', 'bowl', 'boy'),
    *('bridge', 'bus', 'butterfly', 'camel', 'can', 'castle', 'caterpillar', 'cattle', 'chair', 'chimpanzee', 'clock'),
    *('cloud', 'cockroach', 'couch', 'crab', 'crocodile', 'cup', 'dinosaur', 'dolphin', 'elephant', 'flatfish'),
    *('forest', 'fox', 'girl', 'hamster', 'house', 'kangaroo', 'keyboard', 'lamp', 'lawn_mower', 'leopard', 'lion'),
    *('lizard', 'lobster', 'man', 'maple_tree', 'motorcycle', 'mountain', 'mouse', 'mushroom', 'oak_tree', 'orange'),
    *('orchid', 'otter', 'palm_tree', 'pear', 'pickup_truck', 'pine_tree', 'plain', 'plate', 'poppy', 'porcupine'),
    *('possum', 'rabbit', 'raccoon', 'ray', 'road', 'rocket', 'rose', 'sea', 'seal', 'shark', 'shrew', 'skunk'),
    *('skyscraper', 'snail', 'snake', 'spider', 'squirrel', 'streetcar', 'sunflower', 'sweet_pepper', 'table', 'tank'),
    *('telephone', 'television', 'tiger', 'tractor', 'train', 'trout', 'tulip', 'turtle', 'wardrobe', 'whale'),
    *('willow_tree', 'wolf', 'woman', 'worm'),
)
SUFFIXES = {'.bmp', '.jpeg', '.jpg', '.png', '.webp'}


class LabelledImageSet(BaseDataset):
    """Images in memory.

    Args:
        data_root: folder of the set.
        split: `train` or `test`.
        settings: of `mmengine.dataset.BaseDataset`: `pipeline`, `metainfo`, `indices`, ...

    Raises:
        RiemError: see the readers in `mmriem.classification.readers`.
    """

    reader: Callable[[str, str], LabelledImages]

    def __init__(self, data_root: str = '', split: str = 'test', **settings: Any) -> None:
        self.split = split
        super().__init__(data_root=data_root, **settings)

    def load_data_list(self) -> list[dict[str, Any]]:
        """One dict for each image."""
        images, labels = type(self).reader(self.data_root, self.split)
        return [
            {'img': image, 'gt_label': label}
            for image, label in zip(np.ascontiguousarray(images.numpy()[..., ::-1]), labels.tolist())
        ]


@DATASETS.register_module()
class MNIST(LabelledImageSet):
    """MNIST, or a set in the same files such as Fashion-MNIST; see `mmriem.classification.read_mnist`."""

    METAINFO = dict(classes=DIGITS)
    reader = staticmethod(read_mnist)


@DATASETS.register_module()
class CIFAR10(LabelledImageSet):
    """CIFAR-10; see `mmriem.classification.read_cifar10`."""

    METAINFO = dict(classes=CIFAR10_CLASSES)
    reader = staticmethod(read_cifar10)


@DATASETS.register_module()
class CIFAR100(LabelledImageSet):
    """CIFAR-100; see `mmriem.classification.read_cifar100`."""

    METAINFO = dict(classes=CIFAR100_CLASSES)
    reader = staticmethod(read_cifar100)


def read_digits(root: str, split: str) -> LabelledImages:
    """scikit-learn's handwritten digits, 8 by 8: `train` and `test` are of different writers, and nothing is read.

    `test` has the digits of the validation images of the demo set, see `mmriem.datasets.digits`.
    """
    from sklearn.datasets import load_digits

    from mmriem.datasets.digits import part_indices

    digits, chosen = load_digits(), np.asarray(part_indices('train' if split == 'train' else 'val'))
    images = np.floor(digits.images[chosen, :, :, None] * (255 / 16) + 0.5).astype(np.uint8)
    return LabelledImages(torch.from_numpy(images), torch.from_numpy(digits.target[chosen].astype(np.int64)))


@DATASETS.register_module()
class Digits(LabelledImageSet):
    """The digits of `read_digits`; there is no `data_root`."""

    METAINFO = dict(classes=DIGITS)
    reader = staticmethod(read_digits)


@DATASETS.register_module()
class ImageFolder(BaseDataset):
    """Images in the layout of ImageNet: `data_root/split/CLASS/*.JPEG`, classes numbered in the order of their names.

    Args:
        data_root: folder of the set.
        split: name of a folder in it.
        settings: of `mmengine.dataset.BaseDataset`.

    Raises:
        RiemError: there is no such folder, or no folder for each class in it, or none has an image.
    """

    def __init__(self, data_root: str, split: str = 'val', **settings: Any) -> None:
        self.split = split
        super().__init__(data_root=data_root, **settings)

    def load_data_list(self) -> list[dict[str, Any]]:
        """One dict for each image."""
        root = Path(self.data_root, self.split)
        if not root.is_dir():
            raise RiemError(f'{root}: expected a folder with one folder for each class, found none; give its data_root')
        classes = sorted(path.name for path in root.iterdir() if path.is_dir())
        if not classes:
            raise RiemError(
                f'{root}: expected one folder for each class, found none; move each image to a folder of its class'
            )
        self._metainfo.setdefault('classes', tuple(classes))
        found = [
            {'img_path': str(path), 'gt_label': label}
            for label, name in enumerate(classes)
            for path in sorted((root / name).iterdir())
            if path.suffix.lower() in SUFFIXES
        ]
        if not found:
            raise RiemError(
                f'{root}: expected images ({", ".join(sorted(SUFFIXES))}), found none; unpack the set there'
            )
        return found
