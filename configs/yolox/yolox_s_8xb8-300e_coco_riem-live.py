"""With a backbone and a neck that hold states instead of weights: those of a .riem file, of whatever rate."""

_base_ = './yolox_s_8xb8-300e_coco_riem-3bit.py'

riem = dict(representation='lattice', ratio=0.09375)  # of fresh states, until a file is loaded
model = dict(
    backbone=dict(type='mmriem.RieMCSPDarknet', riem=riem),
    neck=dict(type='mmriem.RieMYOLOXPAFPN', riem=riem),
)
