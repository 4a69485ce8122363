"""CIFAR-100 in `data/cifar100/cifar-100-python/`."""

_base_ = './cifar.py'

dataset = dict(type='mmriem.CIFAR100', data_root='data/cifar100/')
train_dataloader = dict(dataset=dataset)
val_dataloader = dict(dataset=dataset)
test_dataloader = dict(dataset=dataset)
