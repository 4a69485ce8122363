"""Data sets for MMEngine."""

import cv2
import numpy as np
import pytest
from mmengine.registry import DATASETS

from mmriem.core.errors import RiemError


def build(kind, **settings):
    return DATASETS.build(dict(type=f'mmriem.{kind}', **settings))


@pytest.mark.parametrize('split', ['train', 'test'])
def test_mnist(mnist, mnist_arrays, split):
    found = build('MNIST', data_root=str(mnist), split=split)
    images, labels = mnist_arrays[split]
    assert len(found) == len(images) and found.metainfo['classes'] == tuple('0123456789')
    assert np.array_equal(found[3]['img'][..., 0], images[3]) and found[3]['gt_label'] == labels[3]


def test_cifar_is_blue_first(cifar, cifar_arrays):
    images, labels = cifar_arrays[5]
    for kind, classes in (('CIFAR10', 10), ('CIFAR100', 100)):
        found = build(kind, data_root=str(cifar))
        assert np.array_equal(found[2]['img'], images[2][..., ::-1]) and found[2]['gt_label'] == labels[2]
        assert len(set(found.metainfo['classes'])) == classes
        assert list(found.metainfo['classes']) == sorted(found.metainfo['classes'])
    assert len(build('CIFAR10', data_root=str(cifar), split='train', indices=9)) == 9


def test_digits_of_the_two_splits():
    train, test = build('Digits', split='train'), build('Digits')
    assert (len(train), len(test)) == (1287, 382)
    assert train[0]['img'].shape == (8, 8, 1) and train[0]['img'].max() > 230
    assert [test[k]['gt_label'] for k in range(10)] == list(range(10))


@pytest.fixture
def folder(tmp_path):
    for name, value in (('n02', 10), ('n01', 200), ('n03', 90)):
        for number in range(2):
            path = tmp_path / 'val' / name / f'ILSVRC2012_val_{number}.JPEG'
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(cv2.imencode('.jpg', np.full((9, 8, 3), value + number, np.uint8))[1].tobytes())
        (tmp_path / 'val' / name / 'notes.txt').write_text('no image')
    return tmp_path


def test_folders_of_classes(folder):
    pipeline = [dict(type='mmriem.LoadImage'), dict(type='mmriem.CenterCrop', crop_size=4)]
    found = build('ImageFolder', data_root=str(folder), pipeline=pipeline)
    assert found.metainfo['classes'] == ('n01', 'n02', 'n03')
    assert [found[k]['gt_label'] for k in range(6)] == [0, 0, 1, 1, 2, 2]
    assert [int(found[k]['img'].mean().round()) for k in range(6)] == [200, 201, 10, 11, 90, 91]


def test_folders_that_will_not_do(folder):
    with pytest.raises(RiemError, match=r'train: expected a folder with one folder for each class, found none'):
        build('ImageFolder', data_root=str(folder), split='train')
    with pytest.raises(RiemError, match=r'n01: expected one folder for each class, found none; move each image'):
        build('ImageFolder', data_root=str(folder / 'val'), split='n01')
    (folder / 'test' / 'n01').mkdir(parents=True)
    with pytest.raises(RiemError, match=r'test: expected images \(\.bmp'):
        build('ImageFolder', data_root=str(folder), split='test')


@pytest.mark.parametrize('kind', ['MNIST', 'CIFAR10', 'CIFAR100', 'ImageFolder'])
def test_nothing_is_read_before_it_is_needed(kind):
    found = build(kind, data_root='absent', lazy_init=True)
    with pytest.raises(RiemError, match='expected a folder with'):
        found.full_init()
