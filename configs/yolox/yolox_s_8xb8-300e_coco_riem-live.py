"""With a backbone and a neck that hold states instead of weights: those of a .riem file, of whatever rate."""

_base_ = './yolox_s_8xb8-300e_coco_riem-3bit.py'

riem = dict(representation='lattice', bits=3)  # of an ordinary checkpoint, which is fitted when it is loaded
model = dict(
    backbone=dict(type='mmriem.RieMCSPDarknet', riem=riem),
    neck=dict(type='mmriem.RieMYOLOXPAFPN', riem=riem),
)
