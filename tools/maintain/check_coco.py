"""Check the COCO folder that mmdet's configs expect, and say what is missing and where to get it.

    python tools/maintain/check_coco.py [data/coco] [--train] [--samples N]

Exit status 0: evaluation (with `--train`: training, too) finds everything. 1: something is missing.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from mmriem.core.errors import RiemError
from mmriem.engine.command_line import run

SITE = 'http://images.cocodataset.org'
ANNOTATIONS = f'{SITE}/annotations/annotations_trainval2017.zip'
COUNTS = {'val2017': 5000, 'train2017': 118287}
"""Images of COCO 2017."""
CATEGORIES = 80
SHOWN = 3


@dataclass
class Findings:
    """What was found of one set of images.

    Attributes:
        images, bytes: of the images that the annotations name and the folder has.
        boxes: annotations.
        missing: sentences, each about something that evaluation needs; empty where all is there.
        notes: sentences about what is unusual and allowed.
    """

    images: int = 0
    bytes: int = 0
    boxes: int = 0
    missing: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def check_set(root: Path, name: str, samples: int) -> Findings:
    """Compare `annotations/instances_NAME.json` with the folder `NAME`.

    Args:
        root: the COCO folder.
        name: `val2017` or `train2017`.
        samples: how many images, evenly spread, are read and compared with the size that the annotations tell;
            0: all.
    """
    found = Findings()
    path, folder = root / 'annotations' / f'instances_{name}.json', root / name
    for part, what, archive in (
        (path, path.is_file(), ANNOTATIONS),
        (folder, folder.is_dir(), f'{SITE}/zips/{name}.zip'),
    ):
        if not what:
            found.missing.append(f'{part}: expected, found nothing; unpack {archive} in {root}')
    if not path.is_file():
        return found
    try:
        images, annotations, categories = _annotations(path)
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = f'{type(error).__name__}: {error}'
        found.missing.append(f'{path}: expected COCO annotations, found others ({reason}); unpack {ANNOTATIONS} again')
        return found
    found.boxes = annotations
    if categories != CATEGORIES:
        found.notes.append(f'{path}: {categories} categories, COCO has {CATEGORIES}; name them in metainfo')
    if name in COUNTS and len(images) != COUNTS[name]:
        found.notes.append(f'{path}: {len(images):,} images, COCO has {COUNTS[name]:,}; AP is not comparable')
    if not folder.is_dir():
        return found
    sizes = {image['file_name']: _size(folder / image['file_name']) for image in images}
    absent = [image for image in images if not sizes[image['file_name']]]
    if absent:
        names = ', '.join(image['file_name'] for image in absent[:SHOWN])
        more = f' and {len(absent) - SHOWN:,} more' if len(absent) > SHOWN else ''
        found.missing.append(
            f'{folder}: expected {len(images):,} images, {len(absent):,} are missing or empty ({names}{more}); '
            f'unpack {SITE}/zips/{name}.zip in {root} again'
        )
    there = [image for image in images if sizes[image['file_name']]]
    found.images, found.bytes = len(there), sum(sizes.values())
    found.missing += _odd_images(folder, there[:: max(1, len(there) // samples) if samples else 1])
    return found


def _annotations(path: Path) -> tuple[list[dict[str, Any]], int, int]:
    """The images, the number of annotations and that of categories."""
    content = json.loads(path.read_text(encoding='utf-8'))
    images = [{key: image[key] for key in ('file_name', 'width', 'height')} for image in content['images']]
    return images, len(content['annotations']), len(content['categories'])


def _size(path: Path) -> int:
    """Bytes of a file; 0 where there is none."""
    return path.stat().st_size if path.is_file() else 0


def _odd_images(folder: Path, images: list[dict[str, Any]]) -> Iterator[str]:
    """A sentence for each image that cannot be read or has another size than the annotations tell."""
    for image in images:
        path = folder / image['file_name']
        data = path.read_bytes()
        read = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
        expected = f'{image["width"]}x{image["height"]}'
        found = 'no image' if read is None else f'{read.shape[1]}x{read.shape[0]}'
        if found == expected and is_cut(data):
            found = f'one that ends after {len(data):,} bytes, before its end'
        if found != expected:
            yield f'{path}: expected an image of {expected} pixels, found {found}; unpack its archive again'


def is_cut(data: bytes) -> bool:
    """Whether the file of a JPEG or PNG image ends too early; decoders fill the rest of the image with grey.

    In what follows the header of a JPEG scan no data looks like the marker of the end: a byte 255 is followed by 0.
    A thumbnail in the segments before it has a marker of its own.
    """
    if data.startswith(b'\x89PNG'):
        return b'IEND\xaeB`\x82' not in data  # its last chunk, which is always the same
    if not data.startswith(b'\xff\xd8'):
        return False
    at = 2
    while data[at : at + 1] == b'\xff' and data[at + 1 : at + 2] != b'\xda':  # segments up to the first scan
        at += 2 + int.from_bytes(data[at + 2 : at + 4], 'big')
    return b'\xff\xd9' not in data[at:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('root', nargs='?', default='data/coco', type=Path, help='the folder (default: data/coco)')
    parser.add_argument('--train', action='store_true', help='also what training needs')
    parser.add_argument('--samples', type=int, default=50, help='images of each set to read; 0: all (default: 50)')
    args = parser.parse_args()
    if args.samples < 0:
        parser.error(f'--samples {args.samples}: expected 0 (all) or more')
    if not args.root.is_dir():
        raise RiemError(
            f'{args.root}: expected the COCO folder, found none; make it, or link to yours: ln -s COCO {args.root}'
        )
    complete = True
    for name in ('val2017', 'train2017') if args.train else ('val2017',):
        found = check_set(args.root, name, args.samples)
        complete = complete and not found.missing
        state = 'incomplete' if found.missing else 'complete'
        print(f'{name}: {state}, {found.images:,} images ({found.bytes / 1e9:.2f} GB), {found.boxes:,} annotations')
        for sentence in found.missing:
            print(f'  missing: {sentence}')
        for sentence in found.notes:
            print(f'  note: {sentence}')
    if not args.train:
        print('train2017: not checked, evaluation does without it (--train)')
    sys.exit(0 if complete else 1)


if __name__ == '__main__':
    run(main)
