"""DeiT-S on ImageNet-1k, with the names of weights of its authors and of timm."""

_base_ = ['_base_/runtime.py', '_base_/imagenet.py']

model = dict(
    type='mmriem.ImageClassifier',
    backbone=dict(type='mmriem.VisionTransformer', width=384, depth=12, heads=6, classes=1000),
    data_preprocessor=_base_.data_preprocessor,
)
