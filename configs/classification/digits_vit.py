"""A small vision transformer on scikit-learn's digits: trains in a minute on the CPU."""

_base_ = ['_base_/runtime.py', '_base_/digits.py', '_base_/adamw.py']

model = dict(
    type='mmriem.ImageClassifier',
    backbone=dict(
        type='mmriem.VisionTransformer',
        image_size=28,
        patch_size=7,
        width=64,
        depth=4,
        heads=4,
        mlp_ratio=2,
        classes=10,
        channels=1,
    ),
    data_preprocessor=_base_.data_preprocessor,
)
max_epochs = 40
train_cfg = dict(max_epochs=max_epochs, val_interval=max_epochs)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=40),
    dict(type='CosineAnnealingLR', T_max=max_epochs, begin=0, end=max_epochs, convert_to_iter_based=True),
]
