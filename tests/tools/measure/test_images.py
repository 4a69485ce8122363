import runpy

import pytest
import torch
from torch.distributions import Categorical, kl_divergence

from mmriem.classification import LabelledImages


@pytest.fixture
def tool(tools):
    return runpy.run_path(str(tools / 'measure' / 'images.py'))


def test_images_are_for_the_metric_or_for_the_accuracy(tool):
    pixels = torch.arange(7, dtype=torch.uint8).view(7, 1, 1, 1).expand(7, 2, 2, 3)
    data = LabelledImages(pixels, torch.arange(7))
    images, labels = tool['others'](data, 3)
    assert labels.tolist() == [1, 2, 4] and images.shape == (3, 3, 2, 2)
    for found, expected in ((images, [1.0, 2.0, 4.0]), (tool['every_third'](data, 2), [0.0, 3.0])):
        assert torch.allclose(found[:, 0, 0, 0] * 128 + 127, torch.tensor(expected), atol=1e-4)


def test_the_divergence_is_that_of_the_probabilities(tool):
    found, expected = torch.randn(9, 4), torch.randn(9, 4)
    terms = kl_divergence(Categorical(logits=expected), Categorical(logits=found))
    assert tool['divergence'](found, expected) == pytest.approx(float(terms.mean()), rel=1e-5)
