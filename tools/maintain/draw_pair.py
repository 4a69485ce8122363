"""Draw what a detector finds in an image before and after compression, side by side, with mmdet's DetInferencer.

python tools/maintain/draw_pair.py CONFIG CHECKPOINT NAME.riem IMAGE --out pair.jpg
"""

from __future__ import annotations

import argparse
from pathlib import Path

import cv2
import numpy as np
from mmdet.apis import DetInferencer
from mmdet.utils import register_all_modules
from mmengine.config import Config

from mmriem.core.errors import RiemError
from mmriem.engine.command_line import run
from mmriem.engine.config import read_config
from mmriem.engine.drawing import with_visualizer
from mmriem.engine.scheme import read_pth_safely

GAP = 8
"""White pixels between the pictures."""


def drawn(config: Config, weights: str, image: str, threshold: float) -> tuple[np.ndarray, int]:
    """The image with boxes, `(height, width, 3)` BGR, and the number of boxes."""
    inferencer = DetInferencer(config, weights, device='cpu', show_progress=False)
    found = inferencer(image, return_vis=True, pred_score_thr=threshold)
    boxes = sum(score >= threshold for score in found['predictions'][0]['scores'])
    return found['visualization'][0][..., ::-1], boxes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('config', help='a config file, or mmdet::FOLDER/NAME.py')
    parser.add_argument('checkpoint', help='the original .pth file')
    parser.add_argument('riem', help='the .riem file made of it')
    parser.add_argument('image', help='an image file')
    parser.add_argument('--out', required=True, type=Path, help='picture to write, .jpg or .png')
    parser.add_argument('--threshold', type=float, default=0.4, help='least score of a box (default: 0.4)')
    args = parser.parse_args()
    if cv2.imread(args.image) is None:
        raise RiemError(f'{args.image}: expected an image, found none')
    register_all_modules()
    read_pth_safely()
    config = with_visualizer(read_config(args.config))
    pictures = []
    for weights in (args.checkpoint, args.riem):
        picture, boxes = drawn(config, weights, args.image, args.threshold)
        print(f'{weights}: {Path(weights).stat().st_size:,} bytes, {boxes} boxes')
        pictures += [picture, np.full((len(picture), GAP, 3), 255, np.uint8)]
    args.out.parent.mkdir(parents=True, exist_ok=True)
    if not cv2.imwrite(str(args.out), np.concatenate(pictures[:-1], axis=1)):
        raise RiemError(f'{args.out}: the picture cannot be written; choose another name with --out')


if __name__ == '__main__':
    run(main)
