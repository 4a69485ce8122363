"""Decoded from a .riem file of 1 bit per weight when it is loaded; README.md tells how to make it."""

_base_ = './fcos_r50-caffe_fpn_gn-head_1x_coco_riem-2bit.py'

load_from = 'work_dirs/zoo/fcos_r50-caffe_fpn_gn-head_1x_coco_riem-1bit.riem'
