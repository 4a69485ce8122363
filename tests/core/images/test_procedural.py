"""Dead leaves: seeded, one image independent of the others, with the spectrum of natural images."""

import hashlib

import numpy as np
import pytest
import torch

from mmriem.core.errors import RiemError
from mmriem.core.images.procedural import PLAIN, Style, procedural_images


@pytest.mark.parametrize(('count', 'height', 'width'), [(1, 1, 1), (3, 20, 33), (2, 40, 7)])
def test_shape_and_kind(count, height, width):
    images = procedural_images(count, height, width)
    assert images.shape == (count, 3, height, width) and images.dtype == torch.uint8


def test_an_image_depends_on_the_seed_and_its_number_alone():
    images = procedural_images(4, 24, 32, seed=5)
    assert torch.equal(procedural_images(2, 24, 32, seed=5), images[:2])
    assert torch.equal(procedural_images(4, 24, 32, seed=5), images)
    assert not torch.equal(procedural_images(4, 24, 32, seed=6), images)
    assert len({image.numpy().tobytes() for image in images}) == 4


def test_the_generators_of_torch_and_numpy_are_left_alone():
    torch_before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()
    procedural_images(1, 16, 16)
    assert torch.equal(torch.get_rng_state(), torch_before)
    assert (np.random.get_state()[1] == numpy_before).all()


@pytest.mark.parametrize('sizes', [(0, 8, 8), (1, 0, 8), (1, 8, 0), (-1, 8, 8)])
def test_sizes_below_one_are_refused(sizes):
    with pytest.raises(RiemError, match='expected sizes of 1 and more'):
        procedural_images(*sizes)


def test_a_tiny_image_is_what_it_always_was():
    image = procedural_images(1, 6, 8, seed=3)
    assert hashlib.sha256(image.numpy().tobytes()).hexdigest() == GOLDEN


GOLDEN = '08c2b3f05bb6f4c35ef44d6e17f3789a4d1a399e3c0ae0f06ca2b83830c35deb'


@pytest.fixture(scope='module')
def large():
    return procedural_images(6, 128, 128).double() / 255


def test_the_whole_range_of_brightness_and_colour_is_used(large):
    assert float(large.min()) == 0 and float(large.max()) == 1
    assert 0.15 < float(large.std()) < 0.4
    between_channels = (large[:, 0] - large[:, 1]).std()
    assert float(between_channels) > 0.1


def test_power_falls_with_frequency_as_in_natural_images(large):
    """About as frequency to the power -2."""
    grey = large.mean(1) - large.mean((1, 2, 3))[:, None, None]
    power = torch.fft.fft2(grey).abs().square().mean(0)
    frequency = torch.fft.fftfreq(128, dtype=torch.float64)
    radius = (frequency[:, None].square() + frequency.square()).sqrt()
    edges = 2.0 ** torch.arange(-6, 0)  # octaves from 1/64 to 1/2 of a cycle a pixel
    octaves = [float(power[(radius >= low) & (radius < 2 * low)].mean().log2()) for low in edges[:-1].tolist()]
    assert octaves == sorted(octaves, reverse=True)
    slope = (octaves[-1] - octaves[0]) / (len(octaves) - 1)
    assert -3.2 < slope < -1.2


def test_neighbouring_pixels_are_alike_and_edges_are_sharp(large):
    steps = (large[..., 1:] - large[..., :-1]).abs()
    assert float(steps.median()) < 0.05
    assert float((steps > 0.3).double().mean()) > 0.002


@pytest.mark.parametrize('style', [PLAIN, Style(scale=3, colour=0.4, contrast=(0.3, 1.0), light=0.1)])
def test_an_image_of_a_style_depends_on_the_seed_and_its_number_alone(style):
    images = procedural_images(3, 20, 24, seed=5, style=style)
    assert images.shape == (3, 3, 20, 24) and images.dtype == torch.uint8
    assert torch.equal(procedural_images(2, 20, 24, seed=5, style=style), images[:2])
    assert not torch.equal(procedural_images(3, 20, 24, seed=6, style=style), images)


def test_what_a_style_changes(large):
    def made(**style):
        return procedural_images(6, 128, 128, style=Style(**style)).double() / 255

    def colourfulness(images):
        return float((images - images.mean(1, keepdim=True)).std())

    def roughness(images):
        return float((images[..., 1:] - images[..., :-1]).square().mean().sqrt() / images.std())

    assert colourfulness(made(colour=0.4)) == pytest.approx(0.4 * colourfulness(large), rel=0.02)
    assert (made(colour=0.4).mean(1) - large.mean(1)).abs().mean() < 0.002
    assert float(made(colour=0).std(1).max()) == 0
    assert roughness(made(scale=2)) < 0.9 * roughness(large)
    spread = made(contrast=(0.3, 1.0)).std((1, 2, 3)) / large.std((1, 2, 3))
    assert 0.29 < float(spread.min()) < 0.7 < float(spread.max()) < 1.01
    assert (made(contrast=(0.5, 0.5)).mean((1, 2, 3)) - large.mean((1, 2, 3))).abs().max() < 0.01
    assert (made(colour=0, light=0.1) - made(colour=0)).median() == pytest.approx(0.1, abs=0.01)
