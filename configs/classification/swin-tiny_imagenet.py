"""Swin-T (of mmdet) on ImageNet-1k."""

_base_ = ['_base_/runtime.py', '_base_/imagenet.py']

model = dict(
    type='mmriem.ImageClassifier',
    backbone=dict(type='mmdet.SwinTransformer', out_indices=(3,), convert_weights=False),
    head=dict(type='mmriem.LinearHead', in_channels=768, num_classes=1000),
    data_preprocessor=_base_.data_preprocessor,
)
