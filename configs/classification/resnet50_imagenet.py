"""ResNet-50 (of mmdet) on ImageNet-1k, with the names of weights that torchvision and mmpretrain use."""

_base_ = ['_base_/runtime.py', '_base_/imagenet.py']

model = dict(
    type='mmriem.ImageClassifier',
    backbone=dict(type='mmdet.ResNet', depth=50, out_indices=(3,), norm_eval=False),
    head=dict(type='mmriem.LinearHead', in_channels=2048, num_classes=1000),
    data_preprocessor=_base_.data_preprocessor,
)
