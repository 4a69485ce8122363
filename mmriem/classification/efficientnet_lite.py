"""EfficientNet-Lite0 (Tan and Le 2019, without squeeze-and-excitation and with ReLU6, as Google released it in 2020).

Names of the parameters are those of the PyPI package efficientnet-lite-pytorch, whose trained weights load.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ['EfficientNetLite', 'efficientnet_lite0']

STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
"""Of each stage: blocks, size of the kernel, stride of the first block, expansion, channels."""
STEM, HEAD = 32, 1280
EPSILON = 1e-3


class SameConv2d(nn.Conv2d):
    """A convolution padded as TensorFlow does: outputs are as many as inputs over the stride, rounded up."""

    def forward(self, x: Tensor) -> Tensor:
        """``(n, inputs, h, w)`` to ``(n, outputs, ceil(h / stride), ceil(w / stride))``."""
        high, wide = (
            max((-(-size // stride) - 1) * stride + kernel - size, 0)
            for size, stride, kernel in zip(x.shape[2:], self.stride, self.kernel_size)
        )
        return super().forward(F.pad(x, (wide // 2, wide - wide // 2, high // 2, high - high // 2)))


class InvertedBottleneck(nn.Module):
    """Expansion, depthwise convolution, projection, and a shortcut where shapes allow it."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = inputs * expansion
        if expansion > 1:
            self._expand_conv = SameConv2d(inputs, wide, 1, bias=False)
            self._bn0 = nn.BatchNorm2d(wide, EPSILON)
        self._depthwise_conv = SameConv2d(wide, wide, kernel, stride, groups=wide, bias=False)
        self._bn1 = nn.BatchNorm2d(wide, EPSILON)
        self._project_conv = SameConv2d(wide, outputs, 1, bias=False)
        self._bn2 = nn.BatchNorm2d(outputs, EPSILON)
        self.expands, self.has_shortcut = expansion > 1, stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """``(n, inputs, h, w)`` to ``(n, outputs, h / stride, w / stride)``."""
        out = F.relu6(self._bn0(self._expand_conv(x))) if self.expands else x
        out = F.relu6(self._bn1(self._depthwise_conv(out)))
        out = self._bn2(self._project_conv(out))
        return out + x if self.has_shortcut else out


class EfficientNetLite(nn.Module):
    """The network of :data:`STAGES`."""

    def __init__(self, classes: int = 1000) -> None:
        super().__init__()
        self._conv_stem = SameConv2d(3, STEM, 3, 2, bias=False)
        self._bn0 = nn.BatchNorm2d(STEM, EPSILON)
        blocks, inputs = [], STEM
        for count, kernel, stride, expansion, outputs in STAGES:
            for number in range(count):
                blocks.append(InvertedBottleneck(inputs, outputs, kernel, 1 if number else stride, expansion))
                inputs = outputs
        self._blocks = nn.ModuleList(blocks)
        self._conv_head = SameConv2d(inputs, HEAD, 1, bias=False)
        self._bn1 = nn.BatchNorm2d(HEAD, EPSILON)
        self._fc = nn.Linear(HEAD, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Normalised images ``(n, 3, h, w)`` to logits ``(n, classes)``."""
        x = F.relu6(self._bn0(self._conv_stem(x)))
        for block in self._blocks:
            x = block(x)
        x = F.relu6(self._bn1(self._conv_head(x)))
        return self._fc(x.mean((2, 3)))


def efficientnet_lite0(classes: int = 1000) -> EfficientNetLite:
    """EfficientNet-Lite0, 4.65 million parameters; images of 224 by 224, ``(pixel - 127) / 128``."""
    return EfficientNetLite(classes)
