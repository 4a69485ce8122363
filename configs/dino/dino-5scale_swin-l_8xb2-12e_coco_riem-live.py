"""With a backbone and a neck that hold states instead of weights: those of a .riem file, of whatever rate."""

_base_ = './dino-5scale_swin-l_8xb2-12e_coco_riem-2bit.py'

riem = dict(representation='lattice', bits=2)  # of an ordinary checkpoint, which is fitted when it is loaded
model = dict(
    backbone=dict(type='mmriem.RieMSwinTransformer', riem=riem),
    neck=dict(type='mmriem.RieMChannelMapper', riem=riem),
)
