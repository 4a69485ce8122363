"""Decoded from a .riem file of 1 bit per weight when it is loaded; README.md tells how to make it."""

_base_ = './mask-rcnn_swin-s-p4-w7_fpn_amp-ms-crop-3x_coco_riem-2bit.py'

load_from = 'work_dirs/zoo/mask-rcnn_swin-s-p4-w7_fpn_amp-ms-crop-3x_coco_riem-1bit.riem'
