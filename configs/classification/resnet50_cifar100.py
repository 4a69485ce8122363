"""ResNet-50 with a 3x3 stem on CIFAR-100."""

_base_ = ['_base_/runtime.py', '_base_/cifar100.py', '_base_/sgd.py']

model = dict(
    type='mmriem.ImageClassifier',
    backbone=dict(type='mmriem.SmallImageResNet', depth=50, classes=100),
    data_preprocessor=_base_.data_preprocessor,
)
