"""Procedural images: dead leaves, drawn from a seeded generator, with no data behind them.

Overlapping textured shapes whose sizes follow a power law have the edges, the flat regions and the second-order
statistics of natural images (Lee, Mumford and Huang, "Occlusion models for natural images", IJCV 2001).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import RiemError

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Mean and standard deviation of the pixels of ImageNet, RGB from 0 to 1: what most networks are trained with."""
SHAPES = 80
"""Number of leaves of an image."""
RADII = (0.003, 0.03)
"""What the radius of a leaf is drawn with, relative to the shorter side of the image: ``RADII[1] / sqrt(u)`` for ``u``
uniform between ``RADII[0]`` and 1."""
TEXTURE = 0.3
"""Standard deviation of the contrast of a leaf's texture, a grating."""
FREQUENCIES = (0.1, 0.3, 1.0)
"""Scales of the spatial frequency of a leaf's texture, in twice that many radians a pixel."""
GRAIN = 0.02
"""Standard deviation of the noise of an image's pixels, full range 1."""


@dataclass(frozen=True)
class Style:
    """How the leaves look.

    Attributes:
        scale: they are drawn so many times larger and averaged down, which makes edges soft.
        colour: share of the colour that stays; 0 is grey.
        contrast: least and most contrast of an image, 1 as drawn.
        light: added to each pixel, full range 1.
    """

    scale: int = 1
    colour: float = 1.0
    contrast: tuple[float, float] = (1.0, 1.0)
    light: float = 0.0

    def describe(self) -> dict[str, Any]:
        """For the file and the report; JSON-able."""
        return {'scale': self.scale, 'colour': self.colour, 'contrast': list(self.contrast), 'light': self.light}

    @classmethod
    def told(cls, told: Mapping[str, Any]) -> Style:
        """Inverse of :meth:`describe`."""
        return cls(**{**told, 'contrast': tuple(told['contrast'])})


PLAIN = Style()


def procedural_images(count: int, height: int, width: int, seed: int = 0, style: Style = PLAIN) -> Tensor:
    """``count`` dead-leaves images, uint8 ``(count, 3, height, width)``; image ``k`` depends on ``(seed, k)`` alone.

    Raises:
        RiemError: a size below 1.
    """
    if min(count, height, width) < 1:
        raise RiemError(f'procedural images: expected sizes of 1 and more, found {count} of {height} x {width}')
    images = [_image(height, width, style, np.random.default_rng((seed, number))) for number in range(count)]
    return torch.from_numpy(np.stack(images))


def _image(height: int, width: int, style: Style, rng: np.random.Generator) -> np.ndarray:
    image = np.empty((3, style.scale * height, style.scale * width), np.float32)
    image[:] = rng.uniform(0, 1, (3, 1, 1))
    for _ in range(SHAPES):
        _draw_leaf(image, rng)
    image += rng.normal(0, GRAIN, image.shape)
    if style.scale > 1:
        image = image.clip(0, 1).reshape(3, height, style.scale, width, style.scale).mean((2, 4))
    if style.colour < 1:
        grey = image.mean(0)
        image = grey + style.colour * (image - grey)
    if style.contrast != (1.0, 1.0):
        mean = image.mean()
        image = mean + rng.uniform(*style.contrast) * (image - mean)
    return ((image + style.light) * 255).round().clip(0, 255).astype(np.uint8)


def _draw_leaf(image: np.ndarray, rng: np.random.Generator) -> None:
    """Draw an ellipse, a rectangle or a triangle with a grating on it over the image."""
    height, width = image.shape[1:]
    side = min(height, width)
    radius = float(np.clip(RADII[1] * side / np.sqrt(rng.uniform(RADII[0], 1)), 1.5, 0.5 * side))
    x, y, angle, aspect = rng.uniform(0, width), rng.uniform(0, height), rng.uniform(0, np.pi), rng.uniform(0.4, 1)
    shape, colour = int(rng.integers(3)), rng.uniform(0, 1, (3, 1)).astype(np.float32)
    wave = rng.uniform(-2, 2, 2) * rng.choice(FREQUENCIES)
    contrast = TEXTURE * rng.standard_normal()
    reach = int(radius * 1.5) + 2  # a triangle's corners are up to 1.42 radii away
    top, left = max(0, int(y) - reach), max(0, int(x) - reach)
    rows = np.arange(top, min(height, int(y) + reach), dtype=np.float32)[:, None]
    columns = np.arange(left, min(width, int(x) + reach), dtype=np.float32)
    if rows.size == 0 or columns.size == 0:
        return
    along = (columns - x) * np.cos(angle) + (rows - y) * np.sin(angle)
    across = (rows - y) * np.cos(angle) - (columns - x) * np.sin(angle)
    inside = _inside(shape, along, across, radius, aspect)
    light = (1 + contrast * np.sin(columns * wave[0] + rows * wave[1]))[inside].astype(np.float32)
    patch = image[:, top : top + rows.shape[0], left : left + columns.shape[0]]
    patch[:, inside] = np.clip(colour * light, 0, 1)


def _inside(shape: int, along: np.ndarray, across: np.ndarray, radius: float, aspect: float) -> np.ndarray:
    if shape == 0:
        return along**2 + (across / aspect) ** 2 < radius**2
    if shape == 1:
        return (np.abs(along) < 0.8 * radius) & (np.abs(across) < 0.8 * radius * aspect)
    return (across > -radius / 2) & (np.abs(along) < (radius - across) / 2)
