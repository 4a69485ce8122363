"""Decoded from a .riem file of 4 bits per weight when it is loaded; README.md tells how to make it."""

_base_ = './yolox_nano_8xb8-300e_coco_riem-5bit.py'

load_from = 'work_dirs/zoo/yolox_nano_8xb8-300e_coco_riem-4bit.riem'
