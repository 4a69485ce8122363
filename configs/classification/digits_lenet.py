"""LeNet-5 on scikit-learn's digits: trains in a minute on the CPU."""

_base_ = ['_base_/runtime.py', '_base_/digits.py', '_base_/adamw.py']

model = dict(
    type='mmriem.ImageClassifier',
    backbone=dict(type='mmriem.LeNet5', classes=10),
    data_preprocessor=_base_.data_preprocessor,
)
