"""Classifiers, their data and their evaluation: torch and numpy only, nothing of mm*.

What MMEngine's configs build stands in modules of its own, which `mmriem.registry` names: `classifier`, `datasets`,
`transforms` and `metric`.
"""

from .efficientnet_lite import EfficientNetLite, efficientnet_lite0
from .evaluation import LabelledImages, normalised, read_images, top1
from .lenet import MLP, LeNet5
from .readers import read_cifar10, read_cifar100, read_image_folder, read_mnist
from .resnet import SmallImageResNet
from .resnet_cifar import ResNetCIFAR, resnet20, resnet56
from .vit import VisionTransformer

__all__ = [
    'MLP',
    'EfficientNetLite',
    'LabelledImages',
    'LeNet5',
    'ResNetCIFAR',
    'SmallImageResNet',
    'VisionTransformer',
    'efficientnet_lite0',
    'normalised',
    'read_cifar10',
    'read_cifar100',
    'read_image_folder',
    'read_images',
    'read_mnist',
    'resnet20',
    'resnet56',
    'top1',
]
