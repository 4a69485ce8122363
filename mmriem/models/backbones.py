"""Backbones of mmdet that hold states."""

from mmdet.models.backbones import ResNet, SwinTransformer

from .module import riem_class

__all__ = ['RieMResNet', 'RieMSwinTransformer']

RieMResNet = riem_class(ResNet)
RieMSwinTransformer = riem_class(SwinTransformer)
