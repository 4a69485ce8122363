"""Necks of mmdet that hold states."""

from mmdet.models import necks as stock

from .module import riem_class

__all__ = [
    'RieMCSPNeXtPAFPN',
    'RieMChannelMapper',
    'RieMDyHead',
    'RieMFPN',
    'RieMNASFPN',
    'RieMPAFPN',
    'RieMSSDNeck',
    'RieMYOLOXPAFPN',
]

RieMCSPNeXtPAFPN = riem_class(stock.CSPNeXtPAFPN)
RieMChannelMapper = riem_class(stock.ChannelMapper)
RieMDyHead = riem_class(stock.DyHead)
RieMFPN = riem_class(stock.FPN)
RieMNASFPN = riem_class(stock.NASFPN)
RieMPAFPN = riem_class(stock.PAFPN)
RieMSSDNeck = riem_class(stock.SSDNeck)
RieMYOLOXPAFPN = riem_class(stock.YOLOXPAFPN)
