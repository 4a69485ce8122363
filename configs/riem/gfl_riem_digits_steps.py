"""Fine-tuning of a compressed demo detector: integer states stay as they are, training moves steps, norms and biases.

python tools/compress.py configs/demo/gfl_r18_fpn_digits.py demo/gfl_r18_fpn_digits.pth --bits 0.5 --out small.riem
python tools/train.py configs/riem/gfl_riem_digits_steps.py --work-dir tuned --cfg-options load_from=small.riem
python tools/compress.py configs/riem/gfl_riem_digits_steps.py tuned/epoch_2.pth --out tuned.riem
"""

_base_ = '_base_/gfl_digits_2e.py'

model = dict(type='mmriem.RieMGFL', riem=dict(representation='lattice', integers='frozen'))
# steps are numbers of about 0.2, of which an update moves a thousandth
optim_wrapper = dict(
    optimizer=dict(lr=1e-3, weight_decay=0.0), paramwise_cfg=dict(custom_keys={'riem': dict(lr_mult=0.3)})
)
