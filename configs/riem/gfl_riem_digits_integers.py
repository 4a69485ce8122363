r"""Fine-tuning of a compressed demo detector: integer states are trained straight through, with norms and biases.

python tools/compress.py configs/demo/gfl_r18_fpn_digits.py demo/gfl_r18_fpn_digits.pth --bits 0.5 \
    --no-trellis --out small.riem
python tools/train.py configs/riem/gfl_riem_digits_integers.py --work-dir tuned --cfg-options load_from=small.riem
python tools/compress.py configs/riem/gfl_riem_digits_integers.py tuned/epoch_2.pth --out tuned.riem
"""

_base_ = '_base_/gfl_digits_2e.py'

model = dict(type='mmriem.RieMGFL', riem=dict(representation='lattice', integers='straight_through'))
# an integer changes where its real number has moved by a half: far longer steps than for norms and biases
optim_wrapper = dict(
    optimizer=dict(lr=1e-3, weight_decay=0.0), paramwise_cfg=dict(custom_keys={'riem': dict(lr_mult=15.0)})
)
