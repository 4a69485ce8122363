"""How the core runs a network on images without knowing what the network is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor, nn

from .errors import RiemError


class Probe(ABC):
    """Images, and the way through a network on them.

    Attributes:
        images: number of images.
        batch: images that are run at a time where their order does not matter.
    """

    images: int
    batch: int

    @abstractmethod
    def run(self, model: nn.Module, first: int, last: int) -> list[Tensor]:
        """The raw outputs (logits, box offsets) of ``model`` on the images ``first`` to ``last - 1``.

        The model runs as it does when it predicts, on the device where it is. Several threads call this at a time,
        each with a model of its own.
        """

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """What the file and the report say of the images; JSON-able."""

    def batches(self) -> list[tuple[int, int]]:
        """``(first, last)`` of every batch."""
        return [(first, min(first + self.batch, self.images)) for first in range(0, self.images, self.batch)]


class ImageProbe(Probe):
    """A network that maps images to one tensor, such as a classifier.

    Args:
        images: ``(n, channels, height, width)``, normalised as the network wants them.
        batch: images run at a time.
        description: see :meth:`Probe.describe`.

    Raises:
        RiemError: there are no images.
    """

    def __init__(self, images: Tensor, batch: int = 32, description: dict[str, Any] | None = None) -> None:
        if images.dim() != 4 or len(images) == 0 or batch < 1:
            raise RiemError(f'probe: expected images (n, channels, height, width), found shape {tuple(images.shape)}')
        self.images, self.batch = len(images), batch
        self._images = images
        self._description = dict(description or {'kind': 'given', 'count': len(images)})

    def run(self, model: nn.Module, first: int, last: int) -> list[Tensor]:
        parameter = next(model.parameters())
        return [model(self._images[first:last].to(parameter.device, parameter.dtype))]

    def describe(self) -> dict[str, Any]:
        return self._description
