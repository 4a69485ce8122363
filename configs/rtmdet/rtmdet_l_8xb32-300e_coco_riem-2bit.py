"""Decoded from a .riem file of 2 bits per weight when it is loaded; README.md tells how to make it."""

_base_ = ['mmdet::rtmdet/rtmdet_l_8xb32-300e_coco.py', '../_base_/drop_in.py']

default_hooks = dict(strict_load=_base_.strict_load)
load_from = 'work_dirs/zoo/rtmdet_l_8xb32-300e_coco_riem-2bit.riem'
