"""ViT-B/16 on ImageNet-1k, with timm's names of weights."""

_base_ = ['_base_/runtime.py', '_base_/imagenet.py']

model = dict(
    type='mmriem.ImageClassifier',
    backbone=dict(type='mmriem.VisionTransformer', width=768, depth=12, heads=12, classes=1000),
    data_preprocessor=_base_.data_preprocessor,
)
