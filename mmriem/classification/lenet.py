"""Small networks for images of handwritten digits."""

from __future__ import annotations

from torch import Tensor, nn

__all__ = ['MLP', 'LeNet5']


class LeNet5(nn.Sequential):
    """LeNet-5 (LeCun et al. 1998) with ReLU and maximum pooling: two convolutions of 5 by 5, three linear layers.

    Args:
        classes: number of logits.
        channels: of the images.
        image_size: height and width of the images, 28 or more; 28 are padded to the paper's 32.

    Maps ``(n, channels, image_size, image_size)`` to ``(n, classes)``.
    """

    def __init__(self, classes: int = 10, channels: int = 1, image_size: int = 28) -> None:
        padding = 2 if image_size == 28 else 0
        side = ((image_size + 2 * padding - 4) // 2 - 4) // 2
        super().__init__(
            nn.Conv2d(channels, 6, 5, padding=padding),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(6, 16, 5),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(16 * side * side, 120),
            nn.ReLU(),
            nn.Linear(120, 84),
            nn.ReLU(),
            nn.Linear(84, classes),
        )


class MLP(nn.Module):
    """Two linear layers with a ReLU between them.

    Args:
        inputs: values of an image, whatever their shape.
        hidden: neurons between the layers.
        classes: number of logits.
    """

    def __init__(self, inputs: int = 784, hidden: int = 512, classes: int = 10) -> None:
        super().__init__()
        self.fc1 = nn.Linear(inputs, hidden)
        self.fc2 = nn.Linear(hidden, classes)

    def forward(self, x: Tensor) -> Tensor:
        """``(n, ...)`` of ``inputs`` values each to ``(n, classes)``."""
        return self.fc2(self.fc1(x.flatten(1)).relu())
