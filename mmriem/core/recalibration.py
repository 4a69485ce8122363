"""Norms and biases of a compressed network, set so that its activations have the statistics of the original's.

Both networks run on the same procedural images. Where an original activation has mean ``m`` and variance ``v`` in a
channel and the compressed one ``m'`` and ``v'``, a BatchNorm is told of an input that has moved by that much, and the
bias of any other layer takes the difference of the means. Only differences between the two networks enter, so the
images need not have the statistics of the real ones. Layers are mended in the order in which they run, each on the
inputs that the mended ones before it give.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from .probe import Probe

MAX_IMAGES = 64
"""Images that run at once, all in one batch, because a layer must be mended before the next one runs."""
GAINS = (1 / 3, 3.0)
"""Bounds of the change of a standard deviation: channels that are dead on these images tell nothing."""
FLOOR = 1e-6
"""Added to the variance of a channel, relative to the mean over the channels."""


@dataclass
class _Statistics:
    """Of one call of a layer: per channel, over images and positions."""

    mean: Tensor
    variance: Tensor
    count: int

    @classmethod
    def of(cls, values: Tensor, channel: int) -> _Statistics:
        flat = values.detach().movedim(channel, 0).flatten(1)
        return cls(flat.mean(1), flat.var(1, unbiased=False), flat.shape[1])


@torch.no_grad()
def recalibrate(model: nn.Module, reference: nn.Module, probe: Probe) -> None:
    """Mend the norms and biases of ``model``, the compressed form of ``reference``, in place."""
    last = min(probe.images, MAX_IMAGES)
    original: dict[str, list[_Statistics]] = {}

    def remember(name: str, module: nn.Module, statistics: _Statistics) -> None:
        original.setdefault(name, []).append(statistics)

    with _watching(reference, remember):
        probe.run(reference, 0, last)
    references = dict(reference.named_modules())
    later: dict[str, list[_Statistics]] = {}

    def mend(name: str, module: nn.Module, statistics: _Statistics) -> Tensor | None:
        expected = original.get(name, [])
        if len(expected) == 1:
            return _mend(module, references[name], expected[0], statistics)
        later.setdefault(name, []).append(statistics)
        return None

    with _watching(model, mend):
        probe.run(model, 0, last)
    modules = dict(model.named_modules())
    for name, found in later.items():  # shared by several calls: mended by what all of them say
        expected = original.get(name, [])
        if len(found) == len(expected):
            _mend(modules[name], references[name], _pooled(expected), _pooled(found))


def _mend(module: nn.Module, reference: nn.Module, expected: _Statistics, found: _Statistics) -> Tensor | None:
    """Change norm or bias; returns what is to be added to each channel of the output, None for a norm."""
    if not isinstance(module, _BatchNorm):
        difference = expected.mean - found.mean
        module.bias += difference
        return difference
    if module.affine and reference.affine:  # another file format may have folded the statistics into these
        module.weight.copy_(reference.weight)
        module.bias.copy_(reference.bias)
    before = expected.variance + FLOOR * expected.variance.mean() + 1e-12
    after = found.variance + FLOOR * expected.variance.mean() + 1e-12
    gain = (after / before).sqrt().clamp(*GAINS)
    module.running_mean.copy_(found.mean - gain * (expected.mean - reference.running_mean))
    variance = (reference.running_var + reference.eps) * gain.square() - module.eps
    module.running_var.copy_(variance.clamp_min(0))
    return None


def _pooled(parts: list[_Statistics]) -> _Statistics:
    count = sum(part.count for part in parts)
    mean = sum(part.mean * part.count for part in parts) / count
    square = sum((part.variance + part.mean.square()) * part.count for part in parts) / count
    return _Statistics(mean, (square - mean.square()).clamp_min(0), count)


def mended_keys(model: nn.Module) -> set[str]:
    """State-dict keys of what :func:`recalibrate` may change."""
    return {
        f'{name}.{attribute}' if name else attribute
        for name, module in model.named_modules()
        for attribute in _mended(module)
    }


def _mended(module: nn.Module) -> tuple[str, ...]:
    if isinstance(module, _BatchNorm):
        tracks = module.track_running_stats and module.running_mean is not None
        return ('running_mean', 'running_var') if tracks else ()
    has_bias = isinstance(module, (_ConvNd, nn.Linear, nn.LayerNorm, nn.GroupNorm)) and module.bias is not None
    return ('bias',) if has_bias else ()


@contextmanager
def _watching(model: nn.Module, see: Callable[[str, nn.Module, _Statistics], Tensor | None]) -> Iterator[None]:
    """Call ``see`` with the input statistics of each BatchNorm and the output statistics of each layer with a bias."""
    hooks = []

    def watch_norm(name: str) -> Callable:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            if inputs[0].numel():
                see(name, module, _Statistics.of(inputs[0], 1))

        return hook

    def watch_bias(name: str, channel: int) -> Callable:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
            added = see(name, module, _Statistics.of(output, channel)) if output.numel() else None
            if added is None:
                return None
            return output + (added if channel == -1 else added.reshape(-1, *[1] * (output.dim() - 2)))

        return hook

    for name, module in model.named_modules():
        if 'bias' in _mended(module):
            channel = 1 if isinstance(module, (_ConvNd, nn.GroupNorm)) else -1
            hooks.append(module.register_forward_hook(watch_bias(name, channel)))
        elif _mended(module):
            hooks.append(module.register_forward_pre_hook(watch_norm(name)))
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
        for hook in hooks:
            hook.remove()
