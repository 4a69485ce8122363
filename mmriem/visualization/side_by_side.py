"""One image twice, beside each other: what the original says of it, and what the compressed model says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

__all__ = ['Drawn', 'side_by_side']

LEAST = 480
"""Pixels of the longer side of each picture, at least."""
MOST = 800
"""And at most."""
BAR = 22
"""Pixels of the line of text over each picture."""
GAP = 8
"""Pixels between the pictures."""
SAME, MISSED, NEW = 'same', 'missed', 'new'
COLOURS = {SAME: (0, 158, 115), MISSED: (213, 94, 0), NEW: (204, 121, 167)}
"""Red, green, blue, of Okabe and Ito: told apart by colour-blind readers too."""
FONT, SCALE = cv2.FONT_HERSHEY_SIMPLEX, 0.42


@dataclass(frozen=True)
class Drawn:
    """One box.

    Attributes:
        box: left, top, right, bottom in pixels of the image.
        text: what is written at it.
        kind: `same`, `missed` or `new`; the latter two are drawn thick.
    """

    box: Sequence[float]
    text: str
    kind: str = SAME


def side_by_side(
    image: np.ndarray, titles: tuple[str, str], boxes: tuple[Sequence[Drawn], Sequence[Drawn]] = ((), ())
) -> np.ndarray:
    """A picture, uint8 ``(height, width, 3)``, red first.

    Args:
        image: uint8 ``(h, w, 3)``, red first, or ``(h, w)``.
        titles: of the left and of the right one.
        boxes: on the left and on the right one.
    """
    image = np.repeat(image[..., None], 3, 2) if image.ndim == 2 else image
    long = max(image.shape[:2])
    scale = min(max(long, LEAST), MOST) / long
    size = tuple(max(1, round(scale * length)) for length in image.shape[1::-1])
    large = cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_NEAREST)
    halves = [_titled(_with_boxes(large, its, scale), title) for title, its in zip(titles, boxes)]
    gap = np.full((halves[0].shape[0], GAP, 3), 255, np.uint8)
    return np.concatenate([halves[0], gap, halves[1]], 1)


def _titled(image: np.ndarray, title: str) -> np.ndarray:
    bar = np.full((BAR, image.shape[1], 3), 255, np.uint8)
    cv2.putText(bar, _ascii(title), (4, BAR - 7), FONT, SCALE, (34, 34, 34), 1, cv2.LINE_AA)
    return np.concatenate([bar, image])


def _with_boxes(image: np.ndarray, boxes: Sequence[Drawn], scale: float) -> np.ndarray:
    image = np.ascontiguousarray(image).copy()
    for drawn in sorted(boxes, key=lambda drawn: drawn.kind != SAME):  # the differences on top
        left, top, right, bottom = (round(scale * float(edge)) for edge in drawn.box)
        colour, thick = COLOURS[drawn.kind], 1 if drawn.kind == SAME else 2
        cv2.rectangle(image, (left, top), (right, bottom), colour, thick)
        (width, height), _ = cv2.getTextSize(_ascii(drawn.text), FONT, SCALE, 1)
        left = max(0, min(left, image.shape[1] - width - 4))
        top = max(height + 6, top)
        cv2.rectangle(image, (left, top - height - 6), (left + width + 4, top), colour, -1)
        cv2.putText(image, _ascii(drawn.text), (left + 2, top - 4), FONT, SCALE, (255, 255, 255), 1, cv2.LINE_AA)
    return image


def _ascii(text: str) -> str:
    """OpenCV's font has no other letters."""
    return text.encode('ascii', 'replace').decode()
