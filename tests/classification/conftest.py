"""The files of MNIST and CIFAR as they are distributed, with few images."""

import gzip
import struct

import numpy as np
import pytest


def idx(array: np.ndarray) -> bytes:
    """The idx format of Yann LeCun's page: magic number, sizes, bytes, big-endian."""
    return struct.pack(f'>HBB{array.ndim}I', 0, 8, array.ndim, *array.shape) + array.tobytes()


def python2_batch(pixels: np.ndarray, labels: list, key: str) -> bytes:
    """What Python 2's cPickle and numpy write, protocol 2: text is bytes, and so are the values of an array."""
    rows = struct.pack('<H', len(pixels))
    array = (
        b'cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R'
        b'(K\x01M' + rows + b'M\x00\x0c\x86cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R'
        b'(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T'
        + struct.pack('<I', pixels.size)
        + pixels.tobytes()
        + b'tb'
    )
    numbers = b'](' + b''.join(b'K' + bytes([label]) for label in labels) + b'e'
    text = [b'U' + bytes([len(word)]) + word for word in (b'batch_label', b'testing', b'data', key.encode())]
    return b'\x80\x02}(' + text[0] + text[1] + text[2] + array + text[3] + numbers + b'u.'


@pytest.fixture(scope='session')
def mnist_arrays():
    """By split: images `(n, 28, 28)` and labels `(n,)`."""
    rng = np.random.default_rng(0)
    return {
        split: (rng.integers(0, 256, (n, 28, 28), np.uint8), rng.integers(0, 10, n, np.uint8))
        for split, n in (('train', 12), ('test', 7))
    }


@pytest.fixture(scope='session')
def mnist(tmp_path_factory, mnist_arrays):
    """A folder with the four files, the training ones gzipped."""
    root = tmp_path_factory.mktemp('mnist')
    for split, prefix, write in (('train', 'train', gzip.compress), ('test', 't10k', bytes)):
        suffix = '.gz' if split == 'train' else ''
        images, labels = mnist_arrays[split]
        (root / f'{prefix}-images-idx3-ubyte{suffix}').write_bytes(write(idx(images)))
        (root / f'{prefix}-labels-idx1-ubyte{suffix}').write_bytes(write(idx(labels)))
    return root


@pytest.fixture(scope='session')
def cifar_arrays():
    """Six batches: images `(4, 32, 32, 3)` and labels, a list."""
    rng = np.random.default_rng(1)
    return [(rng.integers(0, 256, (4, 32, 32, 3), np.uint8), rng.integers(0, 10, 4).tolist()) for _ in range(6)]


@pytest.fixture(scope='session')
def cifar(tmp_path_factory, cifar_arrays):
    """A folder with `cifar-10-batches-py` and `cifar-100-python`, the latter of the first and last batch."""
    root = tmp_path_factory.mktemp('cifar')
    ten, hundred = root / 'cifar-10-batches-py', root / 'cifar-100-python'
    ten.mkdir()
    hundred.mkdir()
    names = [*(ten / f'data_batch_{number}' for number in range(1, 6)), ten / 'test_batch']
    for path, (images, labels) in zip(names, cifar_arrays):
        path.write_bytes(python2_batch(images.transpose(0, 3, 1, 2).reshape(4, -1), labels, 'labels'))
    for path, (images, labels) in ((hundred / 'train', cifar_arrays[0]), (hundred / 'test', cifar_arrays[5])):
        path.write_bytes(python2_batch(images.transpose(0, 3, 1, 2).reshape(4, -1), labels, 'fine_labels'))
    return root
