"""Decoded from a .riem file of 2 bits per weight when it is loaded; README.md tells how to make it."""

_base_ = './yolox_s_8xb8-300e_coco_riem-3bit.py'

load_from = 'work_dirs/zoo/yolox_s_8xb8-300e_coco_riem-2bit.riem'
