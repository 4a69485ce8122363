"""Decoded from a .riem file of 1 bit per weight when it is loaded; README.md tells how to make it."""

_base_ = './dino-5scale_swin-l_8xb2-12e_coco_riem-2bit.py'

load_from = 'work_dirs/zoo/dino-5scale_swin-l_8xb2-12e_coco_riem-1bit.riem'
