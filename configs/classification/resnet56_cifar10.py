"""ResNet-56 on CIFAR-10 (He et al. 2016, option A): the checkpoints of akamaster/pytorch_resnet_cifar10 load.

The test images are in `data_root`: `test.npz`, or `cifar-10-batches-py/` as it is distributed.
"""

_base_ = ['_base_/runtime.py', '_base_/cifar.py', '_base_/sgd.py']

dataset = dict(type='mmriem.CIFAR10', data_root='../shared/data/cifar10/')
train_dataloader = dict(dataset=dataset)
val_dataloader = dict(dataset=dataset)
test_dataloader = dict(dataset=dataset)
model = dict(
    type='mmriem.ImageClassifier',
    backbone=dict(type='mmriem.ResNetCIFAR', blocks=9, classes=10),
    data_preprocessor=_base_.data_preprocessor,
)
