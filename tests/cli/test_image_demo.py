"""A `.riem` file in mmdet's `demo/image_demo.py`, which its wheel does not hold: the calls that it makes."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from mmdet.apis import DetInferencer


def image_demo(inputs, model, weights=None, out_dir='outputs', palette='none', pred_score_thr=0.3):
    """What the script does with these arguments of its command line and the defaults of the others."""
    if model.endswith('.pth'):
        model, weights = None, model
    inferencer = DetInferencer(model=model, weights=weights, device='cpu', palette=palette)
    inferencer.model.test_cfg.chunked_size = -1
    return inferencer(
        inputs=inputs,
        out_dir=out_dir,
        pred_score_thr=pred_score_thr,
        batch_size=1,
        show=False,
        no_save_vis=False,
        no_save_pred=False,
        print_result=False,
        texts=None,
        custom_entities=False,
        tokens_positive=None,
    )


@pytest.mark.parametrize('palette', ['none', 'coco'])
def test_a_picture_and_its_predictions(palette, tiny_config, riem_file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cv2.imwrite('a.png', np.random.default_rng(0).integers(0, 255, (64, 96, 3), np.uint8))
    written = Path(riem_file).with_suffix('.py')
    config = written if written.is_file() else tiny_config
    told = image_demo('a.png', str(config), str(riem_file), palette=palette, pred_score_thr=0.0)
    assert cv2.imread('outputs/vis/a.png').shape == (64, 96, 3)
    kept = json.loads(Path('outputs/preds/a.json').read_text())
    assert kept == json.loads(json.dumps(told['predictions'][0])) and len(kept['bboxes']) == len(kept['scores'])
