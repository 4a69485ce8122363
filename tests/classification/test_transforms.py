"""Steps of the pipelines."""

import cv2
import numpy as np
import pytest
import torch
from mmengine.dataset import Compose
from mmengine.registry import TRANSFORMS

from mmriem.core.errors import RiemError

IMAGE = np.arange(6 * 8 * 3, dtype=np.uint8).reshape(6, 8, 3)


def step(kind, image=IMAGE, **settings):
    return TRANSFORMS.build(dict(type=f'mmriem.{kind}', **settings))({'img': image})['img']


def test_an_image_is_read_blue_first(tmp_path):
    cv2.imwrite(str(tmp_path / 'a.png'), IMAGE)
    load = Compose([dict(type='mmriem.LoadImage')])
    assert np.array_equal(load({'img_path': str(tmp_path / 'a.png')})['img'], IMAGE)
    (tmp_path / 'b.png').write_bytes(b'text')
    with pytest.raises(RiemError, match=r'b\.png: expected an image, found none'):
        load({'img_path': str(tmp_path / 'b.png')})


def test_sizes():
    assert step('Resize', scale=(5, 4)).shape == (4, 5, 3)
    assert step('Resize', scale=12).shape == (12, 16, 3) and step('Resize', IMAGE[:, :3], scale=4).shape == (8, 4, 3)
    assert step('Resize', scale=(8, 6)) is IMAGE
    assert step('Resize', IMAGE[..., 0], scale=(3, 3), interpolation='bicubic').shape == (3, 3)
    with pytest.raises(RiemError, match='expected bilinear or bicubic'):
        step('Resize', scale=4, interpolation='area')


def test_the_middle():
    assert np.array_equal(step('CenterCrop', crop_size=4), IMAGE[1:5, 2:6])
    with pytest.raises(RiemError, match='expected an image of 7 x 7 or more'):
        step('CenterCrop', crop_size=7)


def test_random_crops_reach_every_place():
    np.random.seed(0)
    padded = np.pad(IMAGE, ((1, 1), (1, 1), (0, 0)))
    windows = {padded[y : y + 6, x : x + 6].tobytes() for y in range(3) for x in range(5)}
    assert {step('RandomCrop', crop_size=6, padding=1).tobytes() for _ in range(300)} == windows
    assert step('RandomCrop', IMAGE[..., 0], crop_size=9, padding=2).shape == (9, 9)
    with pytest.raises(RiemError, match='expected an image of 9 x 9 or more'):
        step('RandomCrop', crop_size=9)


def test_flips():
    assert np.array_equal(step('RandomFlip', prob=1.0), IMAGE[:, ::-1])
    assert np.array_equal(step('RandomFlip', prob=0.0), IMAGE)


@pytest.mark.parametrize(('image', 'channels'), [(IMAGE, 3), (IMAGE[..., :1], 1), (IMAGE[..., 0], 1)])
def test_packing(image, channels):
    packed = TRANSFORMS.build(dict(type='mmriem.PackImage'))({'img': image[:, ::-1], 'gt_label': 3, 'img_path': 'x'})
    assert packed['inputs'].dtype == torch.uint8 and packed['inputs'].shape == (channels, 6, 8)
    assert np.array_equal(packed['inputs'][0], image.reshape(6, 8, -1)[:, ::-1, 0])
    assert packed['data_samples'].gt_label.tolist() == [3] and packed['data_samples'].img_path == 'x'
