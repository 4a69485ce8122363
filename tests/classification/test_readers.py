"""Readers of MNIST and CIFAR, on small files in the real formats."""

import gzip
import pickle

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mmriem.classification import read_cifar10, read_cifar100, read_image_folder, read_mnist
from mmriem.core.errors import RiemError

PICTURES = np.zeros((2, 3072), np.uint8)


@pytest.mark.parametrize('split', ['train', 'test'])
def test_mnist(mnist, mnist_arrays, split):
    images, labels = read_mnist(mnist, split)
    assert images.shape[1:] == (28, 28, 1) and np.array_equal(images[..., 0], mnist_arrays[split][0])
    assert np.array_equal(labels, mnist_arrays[split][1]) and labels.dtype.is_signed


def test_mnist_under_other_names(mnist, mnist_arrays, tmp_path):
    for name in ('images-idx3', 'labels-idx1'):
        data = (mnist / f't10k-{name}-ubyte').read_bytes()
        (tmp_path / f't10k-{name.replace("-", ".")}-ubyte').write_bytes(data)
    assert np.array_equal(read_mnist(tmp_path, 'test').labels, mnist_arrays['test'][1])


def test_cifar10(cifar, cifar_arrays):
    images, labels = read_cifar10(cifar, 'train')
    assert np.array_equal(images, np.concatenate([batch[0] for batch in cifar_arrays[:5]]))
    assert labels.tolist() == [label for batch in cifar_arrays[:5] for label in batch[1]]
    images, labels = read_cifar10(cifar / 'cifar-10-batches-py', 'test')
    assert np.array_equal(images, cifar_arrays[5][0]) and labels.tolist() == cifar_arrays[5][1]


@pytest.mark.parametrize(('split', 'batch'), [('train', 0), ('test', 5)])
def test_cifar100(cifar, cifar_arrays, split, batch):
    images, labels = read_cifar100(cifar, split)
    assert np.array_equal(images, cifar_arrays[batch][0]) and labels.tolist() == cifar_arrays[batch][1]


@settings(max_examples=20, deadline=None)
@given(hnp.arrays(np.uint8, st.tuples(st.integers(1, 3), st.just(3072))), st.integers(0, 4), st.data())
def test_batches_of_any_protocol_and_python(tmp_path_factory, pixels, protocol, data):
    labels = data.draw(st.lists(st.integers(0, 9), min_size=len(pixels), max_size=len(pixels)))
    path = tmp_path_factory.getbasetemp() / 'test_batch'
    path.write_bytes(pickle.dumps({'data': pixels, 'labels': labels}, protocol))
    found = read_cifar10(path.parent, 'test')
    assert np.array_equal(found.images.permute(0, 3, 1, 2).reshape(len(pixels), -1), pixels)
    assert found.labels.tolist() == labels


@pytest.mark.parametrize('read', [read_mnist, read_cifar10, read_cifar100])
def test_arrays_in_an_npz_file(tmp_path, read):
    np.savez(tmp_path / 'test.npz', X=np.full((2, 4, 4, 3), 7, np.uint8), Y=[1, 0])
    images, labels = read(tmp_path, 'test')
    assert images.shape == (2, 4, 4, 3) and labels.tolist() == [1, 0]
    with pytest.raises(RiemError, match='expected the file'):
        read(tmp_path, 'train')


@pytest.mark.parametrize(
    ('read', 'message'),
    [
        (read_mnist, 't10k-images-idx3-ubyte or t10k-images-idx3-ubyte.gz, found neither; download'),
        (read_cifar10, 'test_batch of cifar-10-batches-py, found none; download the version for Python'),
        (read_cifar100, 'test of cifar-100-python, found none; download the version for Python'),
    ],
)
def test_what_is_missing_is_named(tmp_path, read, message):
    with pytest.raises(RiemError, match='expected the file') as error:
        read(tmp_path, 'test')
    assert message in str(error.value) and str(tmp_path) in str(error.value)
    with pytest.raises(RiemError, match='absent: expected a folder with the data set'):
        read(tmp_path / 'absent', 'test')
    with pytest.raises(RiemError, match="split: expected one of train, test, found 'val'"):
        read(tmp_path, 'val')


def test_damaged_idx_files(mnist, tmp_path):
    images, labels = ((mnist / f't10k-{name}-ubyte').read_bytes() for name in ('images-idx3', 'labels-idx1'))
    damaged = {
        'expected 5488 values, found 5487': images[:-1],
        'expected an idx file of bytes in 3 dimensions': labels,
        'found one that begins with': images[:9],
        'expected 74816716 values, found': images[:8] + b'\x00\x00\x08\x1b\x01' + images[13:],
    }
    (tmp_path / 't10k-labels-idx1-ubyte').write_bytes(labels)
    for message, data in damaged.items():
        (tmp_path / 't10k-images-idx3-ubyte').write_bytes(data)
        with pytest.raises(RiemError, match=r't10k-images-idx3-ubyte: expected') as error:
            read_mnist(tmp_path, 'test')
        assert message in str(error.value) or message.startswith('expected 748')
    (tmp_path / 't10k-images-idx3-ubyte').write_bytes(images)
    (tmp_path / 't10k-labels-idx1-ubyte').write_bytes(labels[:7] + bytes([6]) + labels[8:-1])
    with pytest.raises(RiemError, match='as many images as labels, found 7 and 6'):
        read_mnist(tmp_path, 'test')
    (tmp_path / 't10k-images-idx3-ubyte').unlink()
    for data in (gzip.compress(images)[:-9], b'no gzip'):
        (tmp_path / 't10k-images-idx3-ubyte.gz').write_bytes(data)
        with pytest.raises(RiemError, match=r'\.gz: expected a file of gzip'):
            read_mnist(tmp_path, 'test')


class Calls:
    def __reduce__(self):
        return print, ('run as code',)


@pytest.mark.parametrize(
    ('tree', 'message'),
    [
        ({'data': PICTURES, 'labels': Calls()}, 'found something else .*GLOBAL builtins.print'),
        ({'data': PICTURES, 'labels': [1]}, r'found uint8 \(2, 3072\) and \(1,\)'),
        ({'data': PICTURES[:, :5], 'labels': [1, 2]}, r'found uint8 \(2, 5\)'),
        ({'data': PICTURES.astype(float), 'labels': [1, 2]}, r'found float64 \(2, 3072\)'),
        ({'data': PICTURES.tolist(), 'labels': [1, 2]}, 'found list'),
        ({'data': PICTURES, 'labels': ['a', 'b']}, "expected numbers as 'labels'"),
        ({'data': PICTURES}, "expected numbers as 'labels'"),
        ([PICTURES], "expected numbers as 'labels'"),
    ],
)
def test_pickles_that_will_not_do(tmp_path, capsys, tree, message):
    (tmp_path / 'test_batch').write_bytes(pickle.dumps(tree))
    with pytest.raises(RiemError, match=message):
        read_cifar10(tmp_path, 'test')
    assert capsys.readouterr().out == ''


def test_a_truncated_pickle(cifar, tmp_path):
    whole = (cifar / 'cifar-10-batches-py/test_batch').read_bytes()
    for size in (0, 1, 100, len(whole) // 2, len(whole) - 1):
        (tmp_path / 'test_batch').write_bytes(whole[:size])
        with pytest.raises(RiemError, match='test_batch: expected'):
            read_cifar10(tmp_path, 'test')


def test_middles_of_the_images_of_a_folder_for_each_class(tmp_path):
    for number in range(3):
        (tmp_path / f'n{number}').mkdir()
        image = np.full((26, 24, 3), (0, 0, 20 * number), np.uint8)  # red
        image[2:24, 1:23, 0] = 254
        cv2.imwrite(str(tmp_path / f'n{number}' / 'a.png'), image)
    (tmp_path / 'README').write_text('no class')
    images, labels = read_image_folder(tmp_path, 22)
    assert labels.tolist() == [0, 1, 2] and images.shape == (3, 22, 22, 3) and images.dtype == torch.uint8
    assert (images[..., 2] == 254).all() and images[:, 0, 0, 0].tolist() == [0, 20, 40]
    with pytest.raises(RiemError, match=r'a\.png: expected an image of at least 25 x 25, found 24 x 26'):
        read_image_folder(tmp_path, 25)
    (tmp_path / 'n1' / 'a.png').write_text('none')
    with pytest.raises(RiemError, match=r'a\.png: expected an image of at least 22 x 22, found none'):
        read_image_folder(tmp_path, 22)
    for root in (tmp_path / 'n0', tmp_path / 'missing'):
        with pytest.raises(RiemError, match='expected a folder of images for each class, found none'):
            read_image_folder(root, 22)
