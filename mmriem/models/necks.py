"""Necks of mmdet that hold states."""

from mmdet.models.necks import FPN

from .module import riem_class

__all__ = ['RieMFPN']

RieMFPN = riem_class(FPN)
