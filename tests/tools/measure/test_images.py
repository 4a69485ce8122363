import runpy

import cv2
import numpy as np
import pytest
import torch
from torch.distributions import Categorical, kl_divergence

from mmriem.core.errors import RiemError


@pytest.fixture
def tool(tools):
    return runpy.run_path(str(tools / 'measure' / 'images.py'))


def test_crops_are_those_of_every_third_class(tool, tmp_path):
    for number in range(7):
        (tmp_path / f'n{number}').mkdir()
        image = np.full((260, 240, 3), (0, 0, 20 * number), np.uint8)  # red
        image[18:242, 8:232, 0] = 254
        cv2.imwrite(str(tmp_path / f'n{number}' / 'a.png'), image)
    images, labels = tool['read_crops'](tmp_path, 1, 5)
    assert labels.tolist() == [1, 4] and images.shape == (2, 3, 224, 224)
    pixels = images * 128 + 127
    assert torch.allclose(pixels[:, 2], torch.full((224, 224), 254.0), atol=1e-3)
    assert torch.allclose(pixels[:, 0, 0, 0], torch.tensor([20.0, 80.0]), atol=1e-3)
    assert tool['read_crops'](tmp_path, 0, 2)[1].tolist() == [0, 3]
    (tmp_path / 'n1' / 'a.png').write_text('none')
    with pytest.raises(RiemError, match=r'a\.png: expected an image of at least 224 x 224'):
        tool['read_crops'](tmp_path, 1, 5)


def test_the_divergence_is_that_of_the_probabilities(tool):
    found, expected = torch.randn(9, 4), torch.randn(9, 4)
    terms = kl_divergence(Categorical(logits=expected), Categorical(logits=found))
    assert tool['divergence'](found, expected) == pytest.approx(float(terms.mean()), rel=1e-5)
