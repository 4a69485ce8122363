"""A demo detector that is trained from random states of the paper's representation: no weight was ever dense.

python tools/train.py configs/riem/gfl_riem_digits_sigmoid-from-scratch.py --work-dir scratch
python tools/compress.py configs/riem/gfl_riem_digits_sigmoid-from-scratch.py scratch/epoch_12.pth --out scratch.riem
"""

_base_ = '../demo/gfl_r18_fpn_digits.py'

model = dict(type='mmriem.RieMGFL', riem=dict(representation='sigmoid', ratio=0.19))
optim_wrapper = dict(
    optimizer=dict(lr=2e-3, weight_decay=0.0), paramwise_cfg=dict(custom_keys={'riem': dict(lr_mult=1.0)})
)
