"""A small vision transformer on scikit-learn's digits: trains in two minutes on the CPU."""

_base_ = ['_base_/runtime.py', '_base_/digits.py', '_base_/adamw.py']

model = dict(
    type='mmriem.ImageClassifier',
    backbone=dict(
        type='mmriem.VisionTransformer',
        image_size=28,
        patch_size=4,
        width=64,
        depth=4,
        heads=4,
        mlp_ratio=2,
        classes=10,
        channels=1,
    ),
    data_preprocessor=_base_.data_preprocessor,
)
