"""Layers that hold states from birth, with the arguments of the ordinary ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from .convert import make_live, writable_weights
from .module import HeldStates, LiveModule, layer_of
from .states import STATES

WEIGHT_OPTIONS = ('representation', 'ratio', 'bits', 'state_bits', 'effort', 'integers', 'materialize')
"""Options of :func:`make_live` that concern each single weight."""


@layer_of(nn.Conv2d)
class RieMConv2d(LiveModule, nn.Conv2d):
    """A convolution that holds states; arguments of ``nn.Conv2d``, and ``WEIGHT_OPTIONS`` by keyword.

    Fresh weights have He's spread for a ReLU, as those of mmcv's ``ConvModule`` and mmdet's ResNet.

    >>> layer = RieMConv2d(32, 64, 3, padding=1, representation='bilinear', ratio=0.2)
    >>> sorted(layer.state_dict())
    ['bias', 'riem.weight.p', 'riem.weight.q']
    >>> import torch
    >>> layer(torch.zeros(1, 32, 8, 8)).shape
    torch.Size([1, 64, 8, 8])
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        options = {name: kwargs.pop(name) for name in WEIGHT_OPTIONS if name in kwargs}
        super().__init__(*args, **kwargs)
        _own_states(self, options)

    def reset_parameters(self) -> None:
        """He's initialisation, no bias."""
        with writable_weights(self):
            nn.init.kaiming_normal_(self.weight, mode='fan_out', nonlinearity='relu')
        if self.bias is not None:
            nn.init.zeros_(self.bias)


@layer_of(nn.Linear)
class RieMLinear(LiveModule, nn.Linear):
    """A linear layer that holds states; arguments of ``nn.Linear``, and ``WEIGHT_OPTIONS`` by keyword."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        options = {name: kwargs.pop(name) for name in WEIGHT_OPTIONS if name in kwargs}
        super().__init__(*args, **kwargs)
        _own_states(self, options)

    def reset_parameters(self) -> None:
        """The initialisation of ``nn.Linear``."""
        with writable_weights(self):
            super().reset_parameters()


def _own_states(layer: nn.Module, options: Mapping[str, Any]) -> None:
    """Turn the layer's own weight into states; one below ``DEFAULT_MIN_NUMEL`` stays a parameter."""
    layer.add_module(STATES, HeldStates())
    make_live(layer, **options)
