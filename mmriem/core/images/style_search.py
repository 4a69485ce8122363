"""Which procedural images suit a network: those whose statistics are the ones that its batch norms have seen.

A BatchNorm holds mean and variance of its inputs on the images of training. Where a network is run on other images
these differ, and the more they do, the less a metric and a recalibration measured there hold on the real ones. So the
style is sought whose statistics come nearest, which takes no data (compare Yin et al., "Dreaming to distill", CVPR
2020, where each pixel is optimised for that).
"""

from __future__ import annotations

import copy
import struct
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..execution.executor import Executor
from ..execution.tasks import Progress, Task
from .probe import Probe
from .procedural import Style
from .watching import Side, watching

DEFAULT = Style(colour=0.4)
"""Style of images for networks whose norms hold no statistics; a search starts there."""
CHOICES: dict[str, tuple[Any, ...]] = {
    'contrast': ((1.0, 1.0), (0.3, 1.0), (0.1, 0.5)),
    'light': (-0.2, -0.1, 0.0, 0.1, 0.2, 0.3),
    'colour': (1.0, 0.4, 0.2),
    'scale': (1, 2),
}
"""Values that a search tries of each attribute of a style, one attribute after the other, in this order."""
ROUNDS = 2
"""Passes of a search over all attributes of a style."""
PIXELS = 1 << 19
"""Pixels of the images that a search runs of one style."""
COUNTS = (2, 64)
"""Fewest and most images that a search runs of one style."""


def choose_style(model: nn.Module, probe_of: Callable[[Style], Probe], executor: Executor | None = None) -> Style:
    """The style whose images are most like those that the network was trained with, as far as its norms tell.

    Args:
        model: the network; it is not changed.
        probe_of: a probe of a few images of a style, see :func:`few_images`.
        executor: who works; of several processes each calls this, and all get the same style.
    """
    if not telling_norms(model):
        return DEFAULT
    distances: dict[Style, float] = {}
    best = DEFAULT
    for _ in range(ROUNDS):
        for attribute, values in CHOICES.items():
            styles = [replace(best, **{attribute: value}) for value in values]
            new = [style for style in styles if style not in distances]
            distances.update(zip(new, _distances(model, new, probe_of, executor or Executor())))
            best = min(styles, key=distances.__getitem__)
    return best


def _distances(
    model: nn.Module, styles: list[Style], probe_of: Callable[[Style], Probe], executor: Executor
) -> list[float]:
    owners = executor.owners([1.0] * len(styles))

    def measure(style: Style, progress: Progress) -> float:
        return distance(model, probe_of(style))

    tasks = [Task('images', 1.0, partial(measure, style), owner) for style, owner in zip(styles, owners)]
    return executor.run(tasks, _NUMBER.pack, lambda data: _NUMBER.unpack(data)[0])


_NUMBER = struct.Struct('<d')


def few_images(width: int, height: int) -> int:
    """How many images of that size tell one style from another.

    >>> few_images(32, 32), few_images(320, 240), few_images(1333, 800)
    (64, 6, 2)
    """
    return min(max(PIXELS // (width * height), COUNTS[0]), COUNTS[1])


@torch.no_grad()
def distance(model: nn.Module, probe: Probe) -> float:
    """How far the inputs of the batch norms are from their statistics, in nats: the mean over channels and norms.

    That of a channel is the Kullback-Leibler divergence of two normal distributions, of its inputs from what it holds.
    """
    found: list[Tensor] = []

    def see(name: str, norm: nn.Module, inputs: Tensor) -> None:
        values = inputs.detach().movedim(1, 0).flatten(1).double()
        if isinstance(norm, _BatchNorm) and values.shape[1] > 1:
            found.append(_divergence(values, norm).mean())

    own = copy.deepcopy(model)
    own.eval()
    norms = set(telling_norms(own))
    names = [name for name, module in own.named_modules() if module in norms]
    with watching(own, dict.fromkeys(names, Side.INPUT), see):
        probe.run(own, 0, probe.images)
    return float(torch.stack(found).mean()) if found else float('inf')


def _divergence(values: Tensor, norm: _BatchNorm) -> Tensor:
    """Of each channel of values ``(channels, count)``."""
    variance = norm.get_buffer('running_var').double() + norm.eps
    ratio = (values.var(1, unbiased=False) / variance).clamp_min(1e-12)
    shift = (values.mean(1) - norm.get_buffer('running_mean')).square() / variance
    return 0.5 * (ratio + shift - 1 - ratio.log())


def telling_norms(model: nn.Module) -> list[_BatchNorm]:
    """Norms with statistics of their own: not those of fresh norms, or of norms that were folded into weights."""
    return [
        module
        for module in model.modules()
        if isinstance(module, _BatchNorm) and module.running_mean is not None and not _is_constant(module.running_mean)
    ]


def _is_constant(values: Tensor) -> bool:
    return bool((values == values[0]).all())
