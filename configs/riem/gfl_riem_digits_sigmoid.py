"""Fine-tuning of a demo detector whose weights are the paper's states.

A .riem file of sigmoid states, or the ordinary checkpoint, to which the states are fitted when it is loaded:

python tools/train.py configs/riem/gfl_riem_digits_sigmoid.py --cfg-options load_from=demo/gfl_r18_fpn_digits.pth
python tools/compress.py configs/riem/gfl_riem_digits_sigmoid.py work_dirs/gfl_riem_digits_sigmoid/epoch_2.pth
"""

_base_ = '_base_/gfl_digits_2e.py'

model = dict(type='mmriem.RieMGFL', riem=dict(representation='sigmoid', ratio=0.1))
# one state moves many weights: shorter steps than for weights
optim_wrapper = dict(
    optimizer=dict(lr=1e-3, weight_decay=0.0), paramwise_cfg=dict(custom_keys={'riem': dict(lr_mult=0.1)})
)
