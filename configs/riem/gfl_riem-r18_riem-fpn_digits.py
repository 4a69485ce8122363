"""The demo detector with a ResNet-18 and an FPN that hold states instead of weights.

python tools/compress.py configs/demo/gfl_r18_fpn_digits.py demo/gfl_r18_fpn_digits.pth --out digits.riem
python tools/test.py configs/riem/gfl_riem-r18_riem-fpn_digits.py digits.riem
"""

_base_ = '../demo/gfl_r18_fpn_digits.py'

# how fresh states are made; a .riem file brings its own representation and sizes
riem = dict(representation='sigmoid', ratio=0.19)
model = dict(
    backbone=dict(type='mmriem.RieMResNet', riem=riem),
    neck=dict(type='mmriem.RieMFPN', riem=riem),
)
# one state moves many weights: far smaller steps than for weights, and no decay
optim_wrapper = dict(optimizer=dict(lr=1e-4, weight_decay=0.0))
