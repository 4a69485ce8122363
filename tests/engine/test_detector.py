import pytest
import torch
from mmdet.apis import inference_detector
from mmdet.apis import init_detector as mmdet_init_detector
from mmengine.config import Config

from mmriem.core.errors import RiemError
from mmriem.engine.config import read_config
from mmriem.engine.detector import build_detector, init_detector


def test_build_reads_nothing(tiny_config):
    config = Config.fromfile(tiny_config)
    config.model.backbone.init_cfg = dict(type='Pretrained', checkpoint='/absent/resnet18.pth')
    assert build_detector(config).bbox_head.num_classes == 2


def test_same_detector_as_mmdet(riem_file, tiny_config, coco_data):
    ours = init_detector(Config.fromfile(tiny_config), riem_file)
    stock = mmdet_init_detector(str(tiny_config), str(riem_file), device='cpu')
    assert ours.dataset_meta == stock.dataset_meta and not ours.training
    image = str(coco_data / 'images' / '0.png')
    found, expected = (inference_detector(model, image).pred_instances for model in (ours, stock))
    assert torch.equal(found.bboxes, expected.bboxes) and torch.equal(found.scores, expected.scores)


def test_pth_and_a_wrong_config(runner_checkpoint, tiny_config):
    config = Config.fromfile(tiny_config)
    assert init_detector(config, runner_checkpoint).dataset_meta['classes'] == ('square', 'bar')
    config.model.neck.out_channels = config.model.bbox_head.in_channels = 16
    with pytest.raises(RiemError, match='does not fit'):
        init_detector(config, runner_checkpoint)


def test_build_leaves_the_config_as_it_was():
    config = read_config('mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py')  # DINO writes to its bbox_head's settings
    before = config.pretty_text
    build_detector(config)
    assert config.pretty_text == before
