"""Configs in pure Python: classes in place of names, no default scope."""

import pytest
import torch

from mmriem.engine.config import read_config
from mmriem.engine.detector import build_detector

CONFIG = """
from mmcv.transforms import LoadImageFromFile
from mmdet.datasets import CocoDataset
from mmdet.datasets.transforms import LoadAnnotations, PackDetInputs, Resize
from mmdet.evaluation import CocoMetric
from mmdet.models import FPN, DetDataPreprocessor, ResNet, RetinaHead, RetinaNet
from mmdet.models.losses import FocalLoss, L1Loss
from mmdet.models.task_modules import AnchorGenerator, DeltaXYWHBBoxCoder
from mmengine.dataset import DefaultSampler
from mmengine.model import PretrainedInit
from mmengine.runner import TestLoop
from torch.nn import BatchNorm2d

default_scope = None
model = dict(
    type=RetinaNet,
    data_preprocessor=dict(type=DetDataPreprocessor, mean=[100.0] * 3, std=[50.0] * 3, pad_size_divisor=32),
    backbone=dict(
        type=ResNet, depth=18, base_channels=8, out_indices=(0, 1, 2, 3), norm_cfg=dict(type=BatchNorm2d),
        init_cfg=dict(type=PretrainedInit, checkpoint='torchvision://resnet18'),
    ),
    neck=dict(type=FPN, in_channels=[8, 16, 32, 64], out_channels=8, start_level=1, num_outs=3),
    bbox_head=dict(
        type=RetinaHead, num_classes=2, in_channels=8, stacked_convs=1, feat_channels=8,
        anchor_generator=dict(
            type=AnchorGenerator, octave_base_scale=4, scales_per_octave=1, ratios=[1.0], strides=[8, 16, 32]
        ),
        bbox_coder=dict(type=DeltaXYWHBBoxCoder),
        loss_cls=dict(type=FocalLoss, use_sigmoid=True), loss_bbox=dict(type=L1Loss),
    ),
    test_cfg=dict(nms_pre=100, min_bbox_size=0, score_thr=0.0, nms=dict(type='nms', iou_threshold=0.5), max_per_img=9),
)
packed = ('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')
pipeline = [
    dict(type=LoadImageFromFile),
    dict(type=LoadAnnotations, with_bbox=True),
    dict(type=Resize, scale=(64, 64), keep_ratio=True),
    dict(type=PackDetInputs, meta_keys=packed),
]
test_dataloader = dict(
    batch_size=1, num_workers=0, sampler=dict(type=DefaultSampler, shuffle=False),
    dataset=dict(
        type=CocoDataset, data_root={root!r}, ann_file='annotations.json', data_prefix=dict(img='images/'),
        metainfo=dict(classes=('square', 'bar')), test_mode=True, pipeline=pipeline,
    ),
)
test_evaluator = dict(type=CocoMetric, ann_file={root!r} + '/annotations.json', metric='bbox')
test_cfg = dict(type=TestLoop)
"""


@pytest.fixture
def pure(coco_data, tmp_path):
    """A config and a checkpoint with random weights, in folders whose names are awkward."""
    (tmp_path / "bob's").mkdir()
    config, checkpoint = tmp_path / "bob's" / 'pure.py', tmp_path / "bob's" / 'two words.pth'
    config.write_text(CONFIG.replace('{root!r}', repr(str(coco_data))))
    torch.manual_seed(0)
    torch.save({'state_dict': build_detector(read_config(config)).state_dict()}, checkpoint)
    return config, checkpoint


def test_compress_test_augment_and_export(call_here, tools, pure, tmp_path, capsys):
    out = tmp_path / "bob's out"
    assert call_here(tools / 'compress.py', *pure, '--out', out, '--bits', '6', '--image-count', '1') is None
    printed = capsys.readouterr().out
    written, riem = out / 'two words.py', out / 'two words.riem'
    assert f"'{tmp_path}/bob'\"'\"'s out/two words.riem'" in printed  # as a shell reads it
    read = read_config(written)
    assert read.load_from == str(riem) and read.default_scope == 'mmdet' and read.model.backbone.init_cfg is None
    assert read.model.type == 'mmdet.models.RetinaNet'
    assert call_here(tools / 'test.py', written, riem, '--work-dir', 'w') is None
    assert call_here(tools / 'test.py', pure[0], riem, '--work-dir', 'w', '--tta') is None
    assert capsys.readouterr().out.count('coco/bbox_mAP: ') == 2
    assert call_here(tools / 'export.py', riem, '--to', 'dense.pth') is None
    assert len(torch.load('dense.pth')['state_dict']) > 100
