import runpy

import pytest
import torch
from torch.distributions import Categorical, kl_divergence

from mmriem.classification import LabelledImages


@pytest.fixture
def tool(tools):
    return runpy.run_path(str(tools / 'measure' / 'images.py'))


def test_every_third_image_as_the_network_takes_it(tool):
    pixels = torch.arange(7, dtype=torch.uint8).view(7, 1, 1, 1).expand(7, 2, 2, 3)
    images, labels = tool['every_third'](LabelledImages(pixels, torch.arange(7)), 1, 5)
    assert labels.tolist() == [1, 4] and images.shape == (2, 3, 2, 2)
    assert torch.allclose(images[:, 0, 0, 0] * 128 + 127, torch.tensor([1.0, 4.0]), atol=1e-4)
    assert tool['every_third'](LabelledImages(pixels, torch.arange(7)), 0, 2)[1].tolist() == [0, 3]


def test_the_divergence_is_that_of_the_probabilities(tool):
    found, expected = torch.randn(9, 4), torch.randn(9, 4)
    terms = kl_divergence(Categorical(logits=expected), Categorical(logits=found))
    assert tool['divergence'](found, expected) == pytest.approx(float(terms.mean()), rel=1e-5)
