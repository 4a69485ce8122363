"""Decoded from a .riem file of 1 bit per weight when it is loaded; README.md tells how to make it."""

_base_ = './deformable-detr_r50_16xb2-50e_coco_riem-2bit.py'

load_from = 'work_dirs/zoo/deformable-detr_r50_16xb2-50e_coco_riem-1bit.riem'
