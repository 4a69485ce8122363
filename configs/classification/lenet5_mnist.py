"""LeNet-5 on MNIST."""

_base_ = ['_base_/runtime.py', '_base_/mnist.py', '_base_/adamw.py']

model = dict(
    type='mmriem.ImageClassifier',
    backbone=dict(type='mmriem.LeNet5', classes=10),
    data_preprocessor=_base_.data_preprocessor,
)
