"""Decoded from a .riem file of 2 bits per weight when it is loaded; README.md tells how to make it."""

_base_ = ['mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py', '../_base_/drop_in.py']

default_hooks = dict(strict_load=_base_.strict_load)
model = dict(backbone=dict(init_cfg=None))  # the file has every weight
load_from = 'work_dirs/zoo/faster-rcnn_r50_fpn_1x_coco_riem-2bit.riem'
