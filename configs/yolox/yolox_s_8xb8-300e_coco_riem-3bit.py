"""Decoded from a .riem file of 3 bits per weight when it is loaded; README.md tells how to make it."""

_base_ = ['mmdet::yolox/yolox_s_8xb8-300e_coco.py', '../_base_/drop_in.py']

default_hooks = dict(strict_load=_base_.strict_load)
load_from = 'work_dirs/zoo/yolox_s_8xb8-300e_coco_riem-3bit.riem'
