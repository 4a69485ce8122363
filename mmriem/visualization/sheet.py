"""A contact sheet: many images beside and below each other, small, as one."""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from html import escape

import cv2
import numpy as np

__all__ = ['contact_sheet', 'picture_tag', 'sheet_tag']

SIDE = 128
"""Most pixels of the longer side of an image on a contact sheet."""
MOST = 24
"""Most images of a contact sheet."""
ACROSS = 8
"""Images of a row of a contact sheet."""
GAP = 4
"""White pixels between the images of a contact sheet."""
QUALITY = 88
"""Quality of a contact sheet as JPEG."""


def contact_sheet(images: Sequence[np.ndarray]) -> np.ndarray:
    """The first ``MOST`` images on white, uint8 ``(height, width, 3)``, red first.

    Args:
        images: one or more, uint8 ``(h, w, 3)``, red first, or ``(h, w)``, of any sizes.
    """
    small = [_small(image) for image in images[:MOST]]
    high, wide = (max(image.shape[axis] for image in small) + GAP for axis in (0, 1))
    across = min(ACROSS, len(small))
    sheet = np.full((math.ceil(len(small) / across) * high + GAP, across * wide + GAP, 3), 255, np.uint8)
    for number, image in enumerate(small):
        top, left = number // across * high + GAP, number % across * wide + GAP
        sheet[top : top + image.shape[0], left : left + image.shape[1]] = image
    return sheet


def sheet_tag(images: Sequence[np.ndarray]) -> str:
    """The contact sheet as a tag of HTML that holds it whole."""
    return picture_tag(contact_sheet(images), 'contact sheet')


def picture_tag(picture: np.ndarray, told: str) -> str:
    """A picture, uint8 ``(height, width, 3)``, red first, as a tag of HTML that holds it whole, with a text for it."""
    _, encoded = cv2.imencode('.jpg', picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
    data = base64.b64encode(encoded.tobytes()).decode()
    height, width = picture.shape[:2]
    return f'<img alt="{escape(told)}" width="{width}" height="{height}" src="data:image/jpeg;base64,{data}">'


def _small(image: np.ndarray) -> np.ndarray:
    if image.ndim == 2:
        image = np.repeat(image[..., None], 3, 2)
    shrink = min(1.0, SIDE / max(image.shape[:2]))
    size = tuple(max(1, round(shrink * length)) for length in image.shape[1::-1])
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA) if shrink < 1 else image
