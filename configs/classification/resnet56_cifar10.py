"""ResNet-56 on CIFAR-10, all else as ResNet-20."""

_base_ = './resnet20_cifar10.py'

model = dict(backbone=dict(blocks=9))
