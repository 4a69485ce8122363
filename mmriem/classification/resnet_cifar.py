"""ResNets for images of 32 by 32 pixels (He et al. 2016, section 4.2), shortcuts without parameters (option A).

Names of the parameters are those of akamaster/pytorch_resnet_cifar10, whose trained weights load.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ['ResNetCIFAR', 'resnet20', 'resnet56']


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, which takes every other pixel and pads channels where shapes change."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride, self.padding = stride, (outputs - inputs) // 2

    def forward(self, x: Tensor) -> Tensor:
        """``(n, inputs, h, w)`` to ``(n, outputs, h / stride, w / stride)``."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        shortcut = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.padding, self.padding))
        return F.relu(out + shortcut)


class ResNetCIFAR(nn.Module):
    """A ResNet of ``6 * blocks + 2`` layers: three stages of ``blocks`` blocks, 16, 32 and 64 channels wide."""

    def __init__(self, blocks: int, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = self._stage(16, 16, blocks)
        self.layer2 = self._stage(16, 32, blocks)
        self.layer3 = self._stage(32, 64, blocks)
        self.linear = nn.Linear(64, classes)

    @staticmethod
    def _stage(inputs: int, outputs: int, blocks: int) -> nn.Sequential:
        first = BasicBlock(inputs, outputs, stride=outputs // inputs)
        return nn.Sequential(first, *(BasicBlock(outputs, outputs, 1) for _ in range(blocks - 1)))

    def forward(self, x: Tensor) -> Tensor:
        """Normalised images ``(n, 3, 32, 32)`` to logits ``(n, classes)``."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean((2, 3)))


def resnet20(classes: int = 10) -> ResNetCIFAR:
    """ResNet-20, 0.27 million parameters."""
    return ResNetCIFAR(3, classes)


def resnet56(classes: int = 10) -> ResNetCIFAR:
    """ResNet-56, 0.85 million parameters."""
    return ResNetCIFAR(9, classes)
