"""Backbones of mmdet that hold states."""

from mmdet.models import backbones as stock

from .module import riem_class

__all__ = [
    'RieMCSPDarknet',
    'RieMCSPNeXt',
    'RieMDarknet',
    'RieMEfficientNet',
    'RieMHRNet',
    'RieMMobileNetV2',
    'RieMPyramidVisionTransformer',
    'RieMPyramidVisionTransformerV2',
    'RieMRegNet',
    'RieMRes2Net',
    'RieMResNeXt',
    'RieMResNet',
    'RieMResNetV1d',
    'RieMSwinTransformer',
]

RieMCSPDarknet = riem_class(stock.CSPDarknet)
RieMCSPNeXt = riem_class(stock.CSPNeXt)
RieMDarknet = riem_class(stock.Darknet)
RieMEfficientNet = riem_class(stock.EfficientNet)
RieMHRNet = riem_class(stock.HRNet)
RieMMobileNetV2 = riem_class(stock.MobileNetV2)
RieMPyramidVisionTransformer = riem_class(stock.PyramidVisionTransformer)
RieMPyramidVisionTransformerV2 = riem_class(stock.PyramidVisionTransformerV2)
RieMRegNet = riem_class(stock.RegNet)
RieMRes2Net = riem_class(stock.Res2Net)
RieMResNeXt = riem_class(stock.ResNeXt)
RieMResNet = riem_class(stock.ResNet)
RieMResNetV1d = riem_class(stock.ResNetV1d)
RieMSwinTransformer = riem_class(stock.SwinTransformer)
