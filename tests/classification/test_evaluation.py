import numpy as np
import pytest
import torch
from torch import nn

from mmriem.classification import read_images, top1
from mmriem.classification.evaluation import normalised
from mmriem.core.errors import RiemError


class Brightest(nn.Module):
    def forward(self, x):
        return x.mean((2, 3))


@pytest.fixture
def file(tmp_path):
    images = np.zeros((7, 4, 4, 3), np.uint8)
    labels = np.array([0, 1, 2, 0, 1, 2, 0])
    images[np.arange(7), :, :, [0, 1, 2, 0, 1, 0, 1]] = 255
    np.savez(tmp_path / 'test.npz', X=images, Y=labels)
    return tmp_path / 'test.npz'


@pytest.mark.parametrize('batch_size', [1, 3, 100])
def test_percent_of_all_images(file, batch_size):
    assert top1(Brightest(), read_images(file), batch_size) == pytest.approx(100 * 5 / 7)


def test_normalised_has_the_mean_and_spread_of_imagenet():
    images = (torch.tensor([124, 116, 104]) / 255).view(1, 3, 1, 1).expand(1, 3, 2, 2)
    assert normalised(images).shape == (1, 3, 2, 2)
    assert normalised(images).abs().max() < 0.01
    white = normalised(torch.ones(1, 3, 1, 1)).flatten()
    assert white.tolist() == pytest.approx([(1 - 0.485) / 0.229, (1 - 0.456) / 0.224, (1 - 0.406) / 0.225])


def test_unfit_files_are_one_error(tmp_path):
    with pytest.raises(RiemError, match=r'expected an \.npz file with'):
        read_images(tmp_path / 'missing.npz')
    np.savez(tmp_path / 'a.npz', X=np.zeros((2, 4, 4, 3), np.uint8))
    with pytest.raises(RiemError, match='labels Y'):
        read_images(tmp_path / 'a.npz')
    np.savez(tmp_path / 'b.npz', X=np.zeros((2, 3, 4, 4), np.uint8), Y=np.zeros(2))
    with pytest.raises(RiemError, match=r'found uint8 \(2, 3, 4, 4\) and \(2,\)'):
        read_images(tmp_path / 'b.npz')
