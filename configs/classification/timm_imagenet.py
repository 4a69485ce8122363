"""A model of timm on ImageNet-1k: another one with --cfg-options model.backbone.model_name=..."""

_base_ = ['_base_/runtime.py', '_base_/imagenet.py']

model = dict(
    type='mmriem.ImageClassifier',
    backbone=dict(type='mmriem.timm', model_name='resnet18'),
    data_preprocessor=_base_.data_preprocessor,
)
