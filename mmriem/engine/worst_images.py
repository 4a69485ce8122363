"""Pictures of the images on which two models agree least."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from torch import nn

from mmriem.core.atomic import whole_file
from mmriem.core.errors import RiemError, os_reason
from mmriem.visualization.side_by_side import Drawn, side_by_side

from .agreement import Agreement, Pairs, top_classes
from .probe import ConfigProbe

__all__ = ['worst_images', 'write_worst']

COUNT = 8
"""Pictures that are drawn."""


def worst_images(
    agreement: Agreement, model: nn.Module, probe: ConfigProbe, most: int = COUNT
) -> list[tuple[str, np.ndarray]]:
    """Name and picture of the images with the least agreement, uint8 ``(h, w, 3)``, red first.

    Args:
        agreement: of the original with another model on these images.
        model: the original.
        probe: the images.
        most: pictures.
    """
    classes = getattr(model, 'dataset_meta', {}).get('classes') or ()
    return [
        (probe.name(number), _drawn(agreement.details[number], probe.picture(model, number), classes, agreement))
        for number in agreement.order[:most]
    ]


def write_worst(pictures: Sequence[tuple[str, np.ndarray]], folder: Path) -> list[Path]:
    """Write pictures of :func:`worst_images` as `01_NAME.png` and so on, the worst one first.

    Raises:
        RiemError: the folder cannot be made or written.
    """
    written = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for number, (name, picture) in enumerate(pictures, 1):
            path = folder / f'{number:02}_{re.sub("[^A-Za-z0-9._-]+", "-", Path(name).stem)}.png'
            _, encoded = cv2.imencode('.png', picture[..., ::-1])
            with whole_file(path) as stream:
                stream.write(encoded.tobytes())
            written.append(path)
    except OSError as error:
        raise RiemError(f'{folder}: pictures cannot be written ({os_reason(error)})') from error
    return written


def _drawn(detail: Pairs | tuple, image: np.ndarray, classes: Sequence[str], agreement: Agreement) -> np.ndarray:
    if not isinstance(detail, Pairs):
        best = [', '.join(top_classes(probabilities, classes)) for probabilities in detail]
        return side_by_side(image, (f'original: {best[0]}', f'compressed: {best[1]}'))
    size = detail.original.size
    if image.shape[:2] != size:  # a step of the config reads it
        image = cv2.resize(image, size[::-1])
    score = agreement.figures['score']
    first = {pair[0] for pair in detail.same}
    shown = {pair[1] for pair in detail.same}
    left = [*((number, 'same') for number in sorted(first)), *((number, 'missed') for number in detail.missed)]
    right = [*((number, 'same') for number in sorted(shown)), *((number, 'new') for number in detail.new)]
    boxes = [
        [Drawn(its.boxes[at], _label(classes, int(its.labels[at]), its.scores[at]), kind) for at, kind in numbers]
        for its, numbers in ((detail.original, left), (detail.compressed, right))
    ]
    titles = (
        f'original: {len(left)} objects, score {score:g} or more; {len(detail.missed)} missed',
        f'compressed: {len(detail.same)} of them, {len(detail.new)} new',
    )
    return side_by_side(image, titles, (boxes[0], boxes[1]))


def _label(classes: Sequence[str], label: int, score: float) -> str:
    return f'{classes[label] if label < len(classes) else f"class {label}"} {score:.2f}'
