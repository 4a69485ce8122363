"""Layers that hold states, as in `conv_cfg=dict(type='mmriem.RieMConv2d', ratio=0.19)`."""

from mmriem.core.live.layers import RieMConv2d, RieMLinear
from mmriem.registry import MODELS

__all__ = ['RieMConv2d', 'RieMLinear']

MODELS.register_module(module=RieMConv2d)
MODELS.register_module(module=RieMLinear)
