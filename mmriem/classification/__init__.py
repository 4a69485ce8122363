"""Classifiers and their evaluation: torch and numpy only, nothing of mm*."""

from .evaluation import LabelledImages, normalised, read_images, top1
from .resnet_cifar import ResNetCIFAR, resnet20, resnet56

__all__ = ['LabelledImages', 'ResNetCIFAR', 'normalised', 'read_images', 'resnet20', 'resnet56', 'top1']
