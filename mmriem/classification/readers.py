"""Readers of the files in which MNIST and CIFAR are distributed; nothing in them is ever run as code."""

from __future__ import annotations

import gzip
import os
import pickle
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mmriem.core.errors import RiemError
from mmriem.core.safe_pickle import load_arrays

from .evaluation import LabelledImages, read_images

__all__ = ['read_cifar10', 'read_cifar100', 'read_image_folder', 'read_mnist']

SPLITS = ('train', 'test')
MNIST_PREFIX = {'train': 'train', 'test': 't10k'}
CIFAR_SHAPE = (3, 32, 32)


def read_mnist(root: str | os.PathLike, split: str) -> LabelledImages:
    """Read MNIST, or a set in the same files: ``train-images-idx3-ubyte``, ``t10k-labels-idx1-ubyte`` and so on.

    The files may be gzipped (``.gz``), or be named ``train-images.idx3-ubyte``. A folder with ``train.npz`` or
    ``test.npz`` (see `read_images`) will do, too.

    Args:
        root: the folder of the files.
        split: ``train`` or ``test``.

    Raises:
        RiemError: a file is missing, damaged or of another kind, or there are more images than labels.
    """
    root = _folder(root, split)
    if (root / f'{split}.npz').is_file():
        return read_images(root / f'{split}.npz')
    images = _read_idx(_idx_file(root, f'{MNIST_PREFIX[split]}-images', 3), 3)
    labels = _read_idx(_idx_file(root, f'{MNIST_PREFIX[split]}-labels', 1), 1)
    if len(images) != len(labels):
        raise RiemError(f'{root}: expected as many images as labels, found {len(images)} and {len(labels)}')
    return LabelledImages(torch.from_numpy(images[..., None]), torch.from_numpy(labels.astype(np.int64)))


def read_cifar10(root: str | os.PathLike, split: str) -> LabelledImages:
    """Read CIFAR-10 in its version for Python: ``cifar-10-batches-py/data_batch_1`` to ``5``, and ``test_batch``.

    A folder with ``train.npz`` or ``test.npz`` (see `read_images`) will do, too. Arguments and errors are as for
    `read_mnist`; a file that holds more than arrays and plain values is refused.
    """
    names = [f'data_batch_{number}' for number in range(1, 6)] if split == 'train' else ['test_batch']
    return _read_cifar(root, split, 'cifar-10-batches-py', names, 'labels')


def read_cifar100(root: str | os.PathLike, split: str) -> LabelledImages:
    """Read CIFAR-100, its 100 fine labels, in its version for Python: ``cifar-100-python/train`` and ``test``.

    As for `read_cifar10`.
    """
    return _read_cifar(root, split, 'cifar-100-python', [split], 'fine_labels')


def read_image_folder(root: str | os.PathLike, size: int) -> LabelledImages:
    """Read the images of a folder with one for each class, in the order of their names: `root/CLASS/NAME.jpg`.

    Args:
        root: the folder.
        size: of the square that is cut out of the middle of each, pixels.

    Raises:
        RiemError: no classes, or a file that is no image of at least that size.
    """
    import cv2

    root = Path(root)
    classes = sorted(path for path in root.iterdir() if path.is_dir()) if root.is_dir() else []
    crops, labels = [], []
    for label, folder in enumerate(classes):
        for path in sorted(folder.iterdir()):
            read = cv2.imread(str(path), cv2.IMREAD_COLOR)
            if read is None or min(read.shape[:2]) < size:
                found = 'none' if read is None else f'{read.shape[1]} x {read.shape[0]}'
                raise RiemError(f'{path}: expected an image of at least {size} x {size}, found {found}; remove it')
            top, left = ((length - size) // 2 for length in read.shape[:2])
            crops.append(read[top : top + size, left : left + size, ::-1])
            labels.append(label)
    if not crops:
        raise RiemError(f'{root}: expected a folder of images for each class, found none; download the data set')
    return LabelledImages(torch.from_numpy(np.stack(crops)), torch.tensor(labels))


def _folder(root: str | os.PathLike, split: str) -> Path:
    if split not in SPLITS:
        raise RiemError(f'split: expected one of {", ".join(SPLITS)}, found {split!r}')
    if not Path(root).is_dir():
        raise RiemError(f'{root}: expected a folder with the data set, found none; download it, or give its data_root')
    return Path(root)


def _idx_file(root: Path, name: str, dimensions: int) -> Path:
    """The file of that name, in any of its spellings."""
    plain = f'{name}-idx{dimensions}-ubyte'
    spellings = [plain, f'{name}.idx{dimensions}-ubyte']
    for spelling in spellings:
        for path in (root / spelling, root / f'{spelling}.gz'):
            if path.is_file():
                return path
    raise RiemError(f'{root}: expected the file {plain} or {plain}.gz, found neither; download it into that folder')


def _read_idx(path: Path, dimensions: int) -> np.ndarray:
    """The bytes of an idx file: two zeros, 8 for uint8, the number of dimensions, their sizes, the values."""
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == '.gz' else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise RiemError(f'{path}: expected a file of gzip, found a damaged one ({error}); download it again') from error
    start = 4 + 4 * dimensions
    if data[:4] != bytes([0, 0, 8, dimensions]) or len(data) < start:
        raise RiemError(
            f'{path}: expected an idx file of bytes in {dimensions} dimensions, found one that begins with '
            f'{data[:4]!r}; download it again'
        )
    shape = struct.unpack(f'>{dimensions}I', data[4:start])
    count = int(np.prod([int(size) for size in shape], dtype=object))
    if len(data) - start != count:
        raise RiemError(f'{path}: expected {count} values, found {len(data) - start}; download it again')
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape).copy()


def _read_cifar(root: str | os.PathLike, split: str, folder: str, names: list[str], key: str) -> LabelledImages:
    root = _folder(root, split)
    inner = root / folder if (root / folder).is_dir() else root
    missing = [name for name in names if not (inner / name).is_file()]
    if (root / f'{split}.npz').is_file() and missing:
        return read_images(root / f'{split}.npz')
    if missing:
        raise RiemError(
            f'{inner}: expected the files {", ".join(missing)} of {folder}, found none; download the version for '
            f'Python and unpack it in {root}'
        )
    batches = [_read_batch(inner / name, key) for name in names]
    pixels, labels = (np.concatenate(parts) for parts in zip(*batches))
    images = pixels.reshape(-1, *CIFAR_SHAPE).transpose(0, 2, 3, 1)
    return LabelledImages(torch.from_numpy(np.ascontiguousarray(images)), torch.from_numpy(labels))


def _read_batch(path: Path, key: str) -> tuple[np.ndarray, np.ndarray]:
    """Pixels, uint8 ``(n, 3072)``, and labels, int64 ``(n,)``."""
    try:
        with path.open('rb') as stream:
            tree = load_arrays(stream)
    except pickle.UnpicklingError as error:
        raise RiemError(f'{path}: expected arrays and plain values, found something else ({error})') from error
    except Exception as error:  # a damaged pickle raises anything
        raise RiemError(f'{path}: expected a pickle of CIFAR, found a damaged file; download it again') from error
    pixels, labels = (_entry(tree, name) for name in ('data', key))
    try:
        labels = np.asarray(labels, np.int64)
    except (TypeError, ValueError) as error:
        raise RiemError(f'{path}: expected numbers as {key!r}, found something else ({error})') from error
    size = int(np.prod(CIFAR_SHAPE))
    if (
        not isinstance(pixels, np.ndarray)
        or pixels.dtype != np.uint8
        or pixels.shape != (*labels.shape, size)
        or labels.ndim != 1
    ):
        found = f'{pixels.dtype} {pixels.shape}' if isinstance(pixels, np.ndarray) else type(pixels).__name__
        raise RiemError(
            f"{path}: expected uint8 'data' (n, {size}) and {key!r} (n,), found {found} and {labels.shape}; "
            'download the version for Python again'
        )
    return pixels, labels


def _entry(tree: Any, name: str) -> Any:
    """Of a dict whose keys are text, or bytes as Python 2 wrote them."""
    return tree.get(name, tree.get(name.encode())) if isinstance(tree, dict) else None
