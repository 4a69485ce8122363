"""Decoded from a .riem file of 1 bit per weight when it is loaded; README.md tells how to make it."""

_base_ = './retinanet_r18_fpn_1x_coco_riem-2bit.py'

load_from = 'work_dirs/zoo/retinanet_r18_fpn_1x_coco_riem-1bit.riem'
