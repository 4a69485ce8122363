"""How the core runs a network on images without knowing what the network is."""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ..errors import RiemError


def without_checkpoints(model: nn.Module) -> nn.Module:
    """The model, no part of which runs again, unseen, in the backward pass."""
    for module in model.modules():
        if getattr(module, 'with_cp', False):
            vars(module)['with_cp'] = False
    return model


def frozen(model: nn.Module) -> nn.Module:
    """The model, whose parameters have no gradients; parts may be TorchScript, whose copies have a history."""
    for parameter in model.parameters():
        parameter.detach_().requires_grad_(False)
    return model


def frozen_copy(model: nn.Module) -> nn.Module:
    """A copy that predicts, whose parameters have no gradients, and no part of which runs again unseen."""
    own = frozen(without_checkpoints(copy.deepcopy(model)))
    own.eval()  # which need not give the module back
    return own


MAX_PIXELS = 1 << 18
"""Most pixels of a batch of images, and of one image where its size is free."""
PIXELS = 1 << 21
"""Pixels of all images together, where their number is not given."""
STEP_PIXELS = 1 << 16
"""Pixels of the images of one step of training."""
COUNTS = (8, 256)
"""Fewest and most images of a probe by default."""
MAX_BATCH = 32
"""Most images of a batch: the pullback metric takes a sample of each, so many batches tell more than one."""


def image_count(width: int, height: int, counts: tuple[int, int] = COUNTS) -> int:
    """How many images of that size are run by default, between the least and the most of ``counts``.

    >>> image_count(32, 32), image_count(224, 224), image_count(1333, 800)
    (256, 41, 8)
    """
    return min(max(PIXELS // (width * height), counts[0]), counts[1])


def batch_size(width: int, height: int, most: int = MAX_BATCH) -> int:
    """How many images of that size run at a time."""
    return min(max(1, MAX_PIXELS // (width * height)), most)


def training_images(width: int, height: int, steps: int) -> tuple[int, int]:
    """How many images of that size there are to train on, and to judge it, and how many of them make one step.

    >>> training_images(32, 32, 300), training_images(32, 32, 4)
    ((2048, 64), (320, 64))
    >>> training_images(224, 224, 300), training_images(1333, 800, 300)
    ((41, 1), (8, 1))
    """
    batch = max(1, STEP_PIXELS // (width * height))
    return min(max(PIXELS // (width * height), COUNTS[0]), (steps + 1) * batch), batch


@dataclass(frozen=True)
class Output:
    """What a network says, and how much errors of it count.

    Attributes:
        values: of any shape.
        weights: of the error of each value, of the same shape; None: all count alike.
        parts: of all that the network says this is one part, of so many equal ones.
    """

    values: Tensor
    weights: Tensor | None
    parts: int


class Probe(ABC):
    """Images, and the way through a network on them.

    Attributes:
        images: number of images.
        batch: most images that are run at a time where their order does not matter.
        pixels: of one image.
        without_metric: what to do where the network cannot be run, for messages.
    """

    images: int
    batch: int
    pixels: int
    without_metric: str = "use metric='identity'"

    @abstractmethod
    def run(self, model: nn.Module, first: int, last: int) -> list[Tensor]:
        """The raw outputs (logits, box offsets) of ``model`` on the images ``first`` to ``last - 1``.

        The model runs as it does when it predicts, on the device where it is. Several threads call this at a time,
        each with a model of its own.
        """

    def judged(self, model: nn.Module, first: int, last: int) -> list[Output]:
        """What is to be kept of the outputs of :meth:`run`, those alone that depend on a weight."""
        found = [values for values in self.run(model, first, last) if values.requires_grad]
        return [Output(values, None, len(found)) for values in found]

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """What the file and the report say of the images; JSON-able."""

    def others(self, steps: int) -> Probe:
        """Other images of the same kind, for so many steps of training; the same ones where there are none.

        They are as many as ``training_images`` says.
        """
        return self

    def batches(self) -> list[tuple[int, int]]:
        """``(first, last)`` of every batch: about equal ones, and of several an even number where that can be."""
        count = -(-self.images // self.batch)
        if count > 1:
            count = min(count + count % 2, self.images)
        return [(number * self.images // count, (number + 1) * self.images // count) for number in range(count)]


def float_tensors(output: Any) -> Iterator[Tensor]:
    """The floating tensors with elements in what a network returned: tensors in dicts, lists and tuples.

    >>> import torch
    >>> [tuple(tensor.shape) for tensor in float_tensors({'logits': torch.zeros(2, 3), 'more': [torch.arange(4)]})]
    [(2, 3)]
    """
    if isinstance(output, Tensor):
        if output.is_floating_point() and output.numel():
            yield output
    elif isinstance(output, Mapping):
        for value in output.values():
            yield from float_tensors(value)
    elif isinstance(output, (list, tuple)):
        for value in output:
            yield from float_tensors(value)


class ImageProbe(Probe):
    """A network of one input, and its outputs whatever their structure: a classifier, say.

    Args:
        images: ``(n, ...)``, mostly ``(n, channels, height, width)``, normalised as the network wants them.
        batch: images run at a time.
        description: see :meth:`Probe.describe`.
        others: makes the probe of :meth:`Probe.others` from the steps; None: there are no others.

    Raises:
        RiemError: there are no images.
    """

    def __init__(
        self,
        images: Tensor,
        batch: int = 32,
        description: dict[str, Any] | None = None,
        others: Callable[[int], Probe] | None = None,
    ) -> None:
        if images.dim() < 2 or len(images) == 0 or batch < 1:
            raise RiemError(f'probe: expected inputs (n, ...), n at least 1, found shape {tuple(images.shape)}')
        self.images, self.batch, self.pixels = len(images), batch, math.prod(images.shape[2:])
        self._images = images
        self._description = dict(description or {'kind': 'given', 'count': len(images)})
        self._others = others

    def run(self, model: nn.Module, first: int, last: int) -> list[Tensor]:
        parameter = next(model.parameters())
        images = self._images[first:last].to(parameter.device)
        outputs = model(images.to(parameter.dtype) if images.is_floating_point() else images)
        return list(float_tensors(outputs))

    def describe(self) -> dict[str, Any]:
        return self._description

    def others(self, steps: int) -> Probe:
        return self if self._others is None else self._others(steps)
