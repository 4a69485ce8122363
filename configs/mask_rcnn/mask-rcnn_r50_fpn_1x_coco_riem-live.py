"""With a backbone and a neck that hold states instead of weights: those of a .riem file, of whatever rate."""

_base_ = './mask-rcnn_r50_fpn_1x_coco_riem-2bit.py'

riem = dict(representation='lattice', bits=2)  # of an ordinary checkpoint, which is fitted when it is loaded
model = dict(
    backbone=dict(type='mmriem.RieMResNet', riem=riem),
    neck=dict(type='mmriem.RieMFPN', riem=riem),
)
