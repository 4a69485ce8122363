"""Two linear layers on MNIST."""

_base_ = ['_base_/runtime.py', '_base_/mnist.py', '_base_/adamw.py']

model = dict(
    type='mmriem.ImageClassifier',
    backbone=dict(type='mmriem.MLP', inputs=784, hidden=512, classes=10),
    data_preprocessor=_base_.data_preprocessor,
)
