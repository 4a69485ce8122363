"""A small vision transformer on CIFAR-100: patches of 4 x 4, 2.7 million parameters."""

_base_ = ['_base_/runtime.py', '_base_/cifar100.py', '_base_/adamw.py']

model = dict(
    type='mmriem.ImageClassifier',
    backbone=dict(
        type='mmriem.VisionTransformer',
        image_size=32,
        patch_size=4,
        width=192,
        depth=6,
        heads=3,
        classes=100,
    ),
    data_preprocessor=_base_.data_preprocessor,
)
