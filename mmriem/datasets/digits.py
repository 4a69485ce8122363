"""The embedded demo set: real handwritten digits on cluttered backgrounds, as a COCO detection set.

The digits are the 1,797 8x8 images of scikit-learn's `load_digits`, the test part of the UCI set "Optical
Recognition of Handwritten Digits" (E. Alpaydin and C. Kaynak, CC BY 4.0), written by 13 people who did not
contribute to the UCI training part.

Which digit is whose. The set does not say who wrote a sample, but its order does nearly: every writer filled
in the same form, so the labels repeat one sequence (it begins 0..9 three times) that starts afresh at the 14
positions in `FORM_STARTS`. There is one form more than there are writers, so somebody filled in two. Training
digits come from the forms before `GAP_FORM`, validation digits from those after it, and the form between them
is not used. So the two parts share no writer, unless that one person's two forms lie on either side of the
gap, which the set gives no means to exclude.

Pixels are the same on every machine: randomness is PCG64's integers and uniform doubles, arithmetic is
elementwise `+ - * /` in float64 (no transcendental function, no matrix product, no library resampling).
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Callable

import cv2
import numpy as np
from sklearn.datasets import load_digits

from mmriem.core.atomic import remove_leftovers, scratch_folder
from mmriem.core.errors import RiemError

CLASSES = tuple('0123456789')
IMAGE_SIZE = 160
FORM_STARTS = (0, 130, 256, 386, 516, 646, 776, 906, 1029, 1157, 1287, 1415, 1545, 1667)
GAP_FORM = 10  # index into FORM_STARTS
MANIFEST = 'manifest.json'
FORMAT = 1  # raise it whenever the pixels or the annotations of a seed change

_PARTS = ('train', 'val')
_EDGE = (0.34, 0.30)  # ink where coverage begins, and how much more ink makes it complete
_CUBIC = -0.75  # the cubic convolution parameter that OpenCV and PyTorch use


@dataclass(frozen=True)
class Scene:
    """One image with its digits: `image` (H, W, 3) uint8 BGR, `boxes` [(x, y, w, h)] in pixels, `labels`."""

    image: np.ndarray
    boxes: tuple[tuple[int, int, int, int], ...]
    labels: tuple[int, ...]


def write_digits(
    root: str | os.PathLike,
    *,
    seed: int = 0,
    train: int = 2000,
    val: int = 200,
    force: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> bool:
    """Write the set to the folder `root`: `images/{train,val}/*.png`, `annotations/{train,val}.json`.

    Image `k` of a part depends on `seed`, the part and `k` only, so a smaller set is the beginning of a
    larger one. A folder that holds this very set already is left alone; the set appears complete or not at
    all.

    Args:
        root: the folder to make; its parents are made too.
        seed: seed of the generator, >= 0.
        train, val: number of images in each part, >= 1.
        force: replace a digits set that was made with other settings or has been damaged.
        progress: called with (images done, images in all).

    Returns:
        True where the set was written, False where it was there.

    Raises:
        RiemError: bad counts or seed, or `root` holds something else (never removed), or holds another or a
            damaged digits set and `force` is not given.

    """
    root = Path(os.path.abspath(root))
    settings = _settings(seed, train, val)
    if _occupied(root):
        if _holds(root, settings):
            return False
        if not force:
            raise RiemError(
                f'{root}: expected a digits set with {_text(settings)}, found one with other '
                'settings or with changed files; pass --force (force=True) to replace it'
            )
    root.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(root.parent)
    with scratch_folder(root) as scratch:
        fresh = scratch / 'new'
        _write_set(fresh, settings, progress)
        if root.exists():
            os.rename(root, scratch / 'old')
        os.rename(fresh, root)
    return True


def draw_scene(part: str, index: int, seed: int = 0) -> Scene:
    """Draw image `index` of `part` ('train' or 'val'): up to 8 digits that hardly overlap."""
    rng = np.random.Generator(np.random.PCG64([seed, _PARTS.index(part), index]))
    canvas = _background(rng, IMAGE_SIZE)
    images, labels, pools = _source(part)
    boxes: list[tuple[int, int, int, int]] = []
    found: list[int] = []
    for _ in range(int(rng.integers(3, 9))):
        pool = pools[int(rng.integers(len(CLASSES)))]
        sample = int(pool[int(rng.integers(len(pool)))])
        patch = _random_coverage(rng, images[sample])
        place = _free_place(rng, patch.shape, boxes, IMAGE_SIZE)
        if place is None:
            continue
        paste(canvas, patch, place, _contrasting_colour(rng, canvas, patch.shape, place))
        boxes.append((*place, patch.shape[1], patch.shape[0]))
        found.append(int(labels[sample]))
    noise = _uniform(rng, -1, 1, canvas.shape) * _uniform(rng, 2, 14)
    return Scene(_to_uint8(canvas + noise), tuple(boxes), tuple(found))


def part_indices(part: str) -> range:
    """Indices into `load_digits` that `part` ('train' or 'val') draws from.

    >>> part_indices('train'), part_indices('val')
    (range(0, 1287), range(1415, 1797))
    """
    if part == 'train':
        return range(0, FORM_STARTS[GAP_FORM])
    return range(FORM_STARTS[GAP_FORM + 1], 1797)


def coverage(ink: np.ndarray, width: float, height: float, half_tangent: float = 0.0) -> np.ndarray:
    """Enlarge one digit, cut to the pixels that it covers at least half.

    Args:
        ink: (8, 8) values in [0, 1].
        width, height: size of the whole 8x8 field in the image, in pixels.
        half_tangent: tan(angle / 2) of the rotation, anticlockwise as displayed.

    Returns:
        (h, w) float64 in [0, 1]: how much of each pixel is ink. Every border row and column has a pixel
        with at least 1/2, so the patch is the digit's tight box.

    """
    cos = (1 - half_tangent * half_tangent) / (1 + half_tangent * half_tangent)
    sin = 2 * half_tangent / (1 + half_tangent * half_tangent)
    side = int(1.5 * max(width, height)) + 4
    centred = np.arange(side) + (0.5 - 0.5 * side)
    x, y = centred[None, :], centred[:, None]
    column = (cos * x - sin * y) * (8 / width) + 3.5
    row = (sin * x + cos * y) * (8 / height) + 3.5
    start, span = _EDGE
    cover = np.clip((_cubic_sample(ink, row, column) - start) / span, 0, 1)
    inside = cover >= 0.5
    rows, columns = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
    return cover[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def paste(canvas: np.ndarray, patch: np.ndarray, place: tuple[int, int], colour: np.ndarray) -> None:
    """Blend `colour` (3,) into `canvas` (H, W, 3) in place, by `patch` (h, w) in [0, 1] at `place` (x, y)."""
    x, y = place
    area = canvas[y : y + patch.shape[0], x : x + patch.shape[1]]
    area += patch[:, :, None] * (colour - area)


# ---- the digits


@cache
def _source(part: str) -> tuple[np.ndarray, np.ndarray, tuple[np.ndarray, ...]]:
    """Ink (1797, 8, 8) in [0, 1], labels (1797,), and per class the indices that `part` may use."""
    digits = load_digits()
    indices = np.asarray(part_indices(part))
    labels = digits.target[indices]
    return digits.images / 16.0, digits.target, tuple(indices[labels == c] for c in range(10))


def _cubic_sample(ink: np.ndarray, row: np.ndarray, column: np.ndarray) -> np.ndarray:
    """Cubic convolution of `ink`, zero outside of it, at float positions (pixel centres are integers)."""
    padded = np.pad(ink, 3)
    size = padded.shape[0]
    top, left = np.floor(row), np.floor(column)
    total = np.zeros(row.shape)
    for i in range(-1, 3):
        rows = np.clip(top.astype(np.int64) + i + 3, 0, size - 1)
        weight = _cubic_weight(row - top - i)
        line = np.zeros(row.shape)
        for j in range(-1, 3):
            columns = np.clip(left.astype(np.int64) + j + 3, 0, size - 1)
            line = line + _cubic_weight(column - left - j) * padded[rows, columns]
        total = total + weight * line
    return total


def _cubic_weight(distance: np.ndarray) -> np.ndarray:
    """Keys' cubic convolution kernel at a distance of at most 2."""
    d = np.abs(distance)
    near = ((_CUBIC + 2) * d - (_CUBIC + 3)) * d * d + 1
    far = ((_CUBIC * d - 5 * _CUBIC) * d + 8 * _CUBIC) * d - 4 * _CUBIC
    return np.where(d <= 1, near, far)


def _random_coverage(rng: np.random.Generator, ink: np.ndarray) -> np.ndarray:
    height = _uniform(rng, 20, 60)
    width = height * _uniform(rng, 0.85, 1.15)
    return coverage(ink, width, height, _uniform(rng, -0.13, 0.13))  # up to 15 degrees


def _free_place(
    rng: np.random.Generator, shape: tuple[int, int], boxes: list[tuple[int, int, int, int]], size: int
) -> tuple[int, int] | None:
    """A random (x, y) where the overlap with every box is at most a tenth; None where 30 tries find none."""
    height, width = shape
    for _ in range(30):
        x, y = int(rng.integers(size - width + 1)), int(rng.integers(size - height + 1))
        if all(_overlap((x, y, width, height), box) <= 0.1 for box in boxes):
            return x, y
    return None


def _overlap(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> float:
    """Intersection of two (x, y, w, h) boxes over the smaller one's area."""
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    return max(width, 0) * max(height, 0) / min(a[2] * a[3], b[2] * b[3])


def _contrasting_colour(
    rng: np.random.Generator, canvas: np.ndarray, shape: tuple[int, int], place: tuple[int, int]
) -> np.ndarray:
    """A colour whose brightness is at least 70 away from that of the middle of the place."""
    x, y = place[0] + shape[1] // 2, place[1] + shape[0] // 2
    behind = _brightness(canvas[y, x])
    while True:
        colour = _uniform(rng, 0, 255, (3,))
        if abs(_brightness(colour) - behind) >= 70:
            return colour


def _brightness(bgr: np.ndarray) -> float:
    return float(0.11 * bgr[0] + 0.59 * bgr[1] + 0.30 * bgr[2])


# ---- the background


def _background(rng: np.random.Generator, size: int) -> np.ndarray:
    """(size, size, 3) float64 clutter in about [0, 255]: a gradient, blotches, then shapes and strokes."""
    y, x = np.mgrid[0:size, 0:size] / (size - 1)
    a, b = _uniform(rng, 0, 255, (3,)), _uniform(rng, 0, 255, (3,))
    slope = x * _uniform(rng, -1, 1) + y * _uniform(rng, -1, 1)
    canvas = a + (b - a) * np.clip(slope + 0.5, 0, 1)[:, :, None]
    for cells in (4, 9, 20):
        canvas = canvas + _blotches(rng, cells, x, y) * _uniform(rng, 0, 50)
    for _ in range(int(rng.integers(4, 12))):
        shape = (_ellipse, _bar, _stroke)[int(rng.integers(3))](rng, x, y)
        opacity = shape * _uniform(rng, 0.3, 1)
        canvas = canvas + opacity[:, :, None] * (_uniform(rng, 0, 255, (3,)) - canvas)
    return canvas


def _blotches(rng: np.random.Generator, cells: int, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Value noise in [-1, 1], (H, W, 3): random values on a grid, smoothly interpolated between."""
    grid = _uniform(rng, -1, 1, (cells + 1, cells + 1, 3))
    left = np.minimum((x * cells).astype(np.int64), cells - 1)
    top = np.minimum((y * cells).astype(np.int64), cells - 1)
    u, v = _smooth(x * cells - left)[:, :, None], _smooth(y * cells - top)[:, :, None]
    upper = grid[top, left] * (1 - u) + grid[top, left + 1] * u
    lower = grid[top + 1, left] * (1 - u) + grid[top + 1, left + 1] * u
    return upper * (1 - v) + lower * v


def _ellipse(rng: np.random.Generator, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """A disc or a ring, squeezed and sheared, as opacity (H, W)."""
    u, v = _frame(rng, x, y)
    radius, flat = _uniform(rng, 0.04, 0.2), _uniform(rng, 0.5, 1)
    ratio = (u * u + v * v / (flat * flat)) / (radius * radius)
    hole = _uniform(rng, 0, 0.8) if rng.integers(2) else 0.0
    return np.clip((1 - ratio) * 6, 0, 1) * np.clip((ratio - hole) * 6, 0, 1)


def _bar(rng: np.random.Generator, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """A rectangle at an angle."""
    u, v = _frame(rng, x, y)
    half_width, half_height = _uniform(rng, 0.03, 0.25), _uniform(rng, 0.03, 0.15)
    return np.clip((half_width - np.abs(u)) * 160, 0, 1) * np.clip((half_height - np.abs(v)) * 160, 0, 1)


def _stroke(rng: np.random.Generator, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """A bent pen stroke, about as thick as those of the digits."""
    u, v = _frame(rng, x, y)
    half_length, bend = _uniform(rng, 0.08, 0.3), _uniform(rng, -4, 4)
    away = np.abs(v - bend * u * u)
    thick = np.clip((_uniform(rng, 0.006, 0.025) - away) * 160, 0, 1)
    return thick * np.clip((half_length - np.abs(u)) * 160, 0, 1)


def _frame(rng: np.random.Generator, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates about a random centre, rotated by a random angle."""
    t = _uniform(rng, -1, 1)
    cos, sin = (1 - t * t) / (1 + t * t), 2 * t / (1 + t * t)
    dx, dy = x - _uniform(rng, 0, 1), y - _uniform(rng, 0, 1)
    return cos * dx - sin * dy, sin * dx + cos * dy


def _smooth(t: np.ndarray) -> np.ndarray:
    return t * t * (3 - 2 * t)


def _uniform(rng: np.random.Generator, low: float, high: float, shape: tuple[int, ...] | None = None):
    return low + (high - low) * rng.random(shape)


def _to_uint8(canvas: np.ndarray) -> np.ndarray:
    return np.floor(np.clip(canvas, 0, 255) + 0.5).clip(0, 255).astype(np.uint8)


# ---- the files


def _settings(seed: int, train: int, val: int) -> dict[str, int]:
    for name, value, least in (('seed', seed, 0), ('train', train, 1), ('val', val, 1)):
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise RiemError(f'{name}: expected a whole number of at least {least}, found {value!r}; give such a number')
    return {'format': FORMAT, 'image_size': IMAGE_SIZE, 'seed': seed, 'train': train, 'val': val}


def _text(settings: dict[str, int]) -> str:
    return ', '.join(f'{name} {value}' for name, value in settings.items())


def _occupied(root: Path) -> bool:
    """Whether a digits set is at `root`, whole or not; something else there is an error."""
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    if not (root / MANIFEST).is_file():
        raise RiemError(
            f'{root}: expected a new or empty folder or a digits set, found something else (no {MANIFEST} '
            'in it); choose another folder'
        )
    return True


def _holds(root: Path, settings: dict[str, int]) -> bool:
    """Whether the set at `root` was made with `settings` and has every file as it was written."""
    try:
        manifest = json.loads((root / MANIFEST).read_text(encoding='utf-8'))
        return manifest['settings'] == settings and manifest['sha256'] == _hashes(root)
    except (ValueError, KeyError, TypeError):
        return False


def _hashes(root: Path) -> dict[str, str]:
    """SHA-256 of every file below `root` but the manifest, by its path there."""
    files = sorted(p for p in root.rglob('*') if p.is_file() and p != root / MANIFEST)
    return {p.relative_to(root).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def _write_set(root: Path, settings: dict[str, int], progress: Callable[[int, int], None] | None) -> None:
    done, total = 0, settings['train'] + settings['val']
    for part in _PARTS:
        (root / 'images' / part).mkdir(parents=True)
        scenes = []
        for index in range(settings[part]):
            scene = draw_scene(part, index, settings['seed'])
            _write_png(root / 'images' / part / _file_name(index), scene.image)
            scenes.append((scene.boxes, scene.labels))
            done += 1
            if progress is not None:
                progress(done, total)
        _write_json(root / 'annotations' / f'{part}.json', _coco(scenes))
    _write_json(root / MANIFEST, {'settings': settings, 'sha256': _hashes(root)})


def _file_name(index: int) -> str:
    return f'{index:06d}.png'


def _write_png(path: Path, image: np.ndarray) -> None:
    done, data = cv2.imencode('.png', image, [cv2.IMWRITE_PNG_COMPRESSION, 3])
    if not done:
        raise RiemError(f'{path}: OpenCV could not encode the image as PNG; reinstall opencv-python')
    path.write_bytes(data.tobytes())


def _write_json(path: Path, content: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, separators=(',', ':')) + '\n', encoding='utf-8')


def _coco(scenes: list[tuple[tuple, tuple]]) -> dict:
    """COCO's annotation dictionary of (boxes, labels) per image; ids count from 1."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index, (boxes, labels) in enumerate(scenes):
        images.append({'id': index + 1, 'file_name': _file_name(index), 'width': IMAGE_SIZE, 'height': IMAGE_SIZE})
        for box, label in zip(boxes, labels):
            annotations.append(
                {
                    'id': len(annotations) + 1,
                    'image_id': index + 1,
                    'category_id': label + 1,
                    'bbox': list(box),
                    'area': box[2] * box[3],
                    'iscrowd': 0,
                }
            )
    categories = [{'id': i + 1, 'name': name, 'supercategory': 'digit'} for i, name in enumerate(CLASSES)]
    return {
        'info': {'description': 'handwritten digits on clutter (mmriem demo set)', 'version': str(FORMAT)},
        'licenses': [{'id': 1, 'name': 'CC BY 4.0', 'url': 'https://creativecommons.org/licenses/by/4.0/'}],
        'images': images,
        'annotations': annotations,
        'categories': categories,
    }
