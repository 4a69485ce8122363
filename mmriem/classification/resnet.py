"""ResNets with the blocks for ImageNet and a stem for small images.

Names of the parameters are those of torchvision's `resnet18` and `resnet50`.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ['SmallImageResNet']

DEPTHS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}


class Block(nn.Module):
    """Convolutions with norms, and a shortcut with a 1x1 convolution where shapes change.

    Args:
        inputs: channels.
        layers: outputs, size and stride of each convolution.
    """

    def __init__(self, inputs: int, layers: list[tuple[int, int, int]]) -> None:
        super().__init__()
        channels, stride = inputs, 1
        for number, (outputs, size, step) in enumerate(layers, 1):
            self.add_module(f'conv{number}', nn.Conv2d(channels, outputs, size, step, size // 2, bias=False))
            self.add_module(f'bn{number}', nn.BatchNorm2d(outputs))
            channels, stride = outputs, stride * step
        self.count = len(layers)
        self.downsample = None
        if stride != 1 or inputs != channels:
            convolution = nn.Conv2d(inputs, channels, 1, stride, bias=False)
            self.downsample = nn.Sequential(convolution, nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        """``(n, inputs, h, w)`` to ``(n, outputs, h / stride, w / stride)``."""
        out = x
        for number in range(1, self.count + 1):
            out = getattr(self, f'bn{number}')(getattr(self, f'conv{number}')(out))
            out = F.relu(out) if number < self.count else out
        return F.relu(out + (x if self.downsample is None else self.downsample(x)))


class SmallImageResNet(nn.Module):
    """A ResNet (He et al. 2016) whose first convolution is 3 by 3 without stride, and nothing is pooled after it.

    Args:
        depth: 18 or 34 with blocks of two convolutions, 50 or 101 with bottlenecks.
        classes: number of logits.
        width: channels of the first stage, doubled in each of the three others.
    """

    def __init__(self, depth: int, classes: int = 100, width: int = 64) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        channels = width
        for stage, blocks in enumerate(DEPTHS[depth]):
            inner, made = width << stage, []
            for number in range(blocks):
                stride = 2 if stage and not number else 1
                layers = [(inner, 3, stride), (inner, 3, 1)]
                if depth >= 50:
                    layers = [(inner, 1, 1), (inner, 3, stride), (4 * inner, 1, 1)]
                made.append(Block(channels, layers))
                channels = layers[-1][0]
            self.add_module(f'layer{stage + 1}', nn.Sequential(*made))
        self.fc = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        """``(n, 3, h, w)`` to ``(n, classes)``."""
        x = F.relu(self.bn1(self.conv1(x)))
        for stage in range(1, 5):
            x = self.get_submodule(f'layer{stage}')(x)
        return self.fc(x.mean((2, 3)))
