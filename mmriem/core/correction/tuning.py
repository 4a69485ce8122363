"""Norms and biases of a compressed network, trained until its features are those of the original.

Both networks run on the same images, procedural ones others than those of the metric. Only vectors are trained (weights
and biases of norms, biases of other layers), by Adam, against the outputs of the original and the inputs of its layers
with compressed weights. That corrects what :mod:`.recalibration` cannot see: it looks at one layer after the other, and
at mean and variance of a channel alone.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import cycle, islice

import torch
from torch import Tensor, nn

from ..errors import RiemError
from ..images.probe import Probe, frozen, without_checkpoints
from ..images.watching import Side, watching

RATE = 1e-3
"""Learning rate of Adam at the first step of a tuning; it falls to zero with a cosine."""
FEATURES = 10.0
"""Weight of the error of features beside that of outputs, in the loss of a tuning."""
SMALLEST = 1e-12
"""Variance of a feature that is as good as none."""
HELD_OUT = 8
"""Batches of a tuning of which one judges the result and is not trained on."""


@dataclass(frozen=True)
class Tuned:
    """How it went: the error on images that were not trained on.

    Attributes:
        before, after: weighted sum of the mean squared relative errors of outputs and features.
        kept: whether the trained vectors are better and were kept.
    """

    before: float
    after: float

    @property
    def kept(self) -> bool:
        return self.after < self.before


@dataclass(frozen=True)
class _Seen:
    """What the original gave: its outputs, and the inputs of each layer in the order of its calls."""

    outputs: list[Tensor]
    inputs: dict[str, list[Tensor | None]]


def tune(
    model: nn.Module,
    reference: nn.Module,
    layers: Iterable[str],
    vectors: Iterable[str],
    probe: Probe,
    steps: int,
    *,
    threads: int = 1,
    on_progress: Callable[[float], None] | None = None,
) -> Tuned:
    """Train ``vectors`` of ``model``, the compressed form of ``reference``, in place; nothing else of it changes.

    Where the error on images that are held out (the same ones, if all are one batch) is not smaller afterwards, they
    stay what they were. The result does not depend on ``threads``; with two or more the original runs beside.

    Args:
        model, reference: in eval mode, on the same device.
        layers: names of the modules whose inputs are compared, those whose first dimension counts the images: the
            proposals of a second stage are others than those of the original.
        vectors: names of the parameters.
        probe: the images.
        steps: how many.
        on_progress: called with the share that is done.

    Raises:
        RiemError: nothing that is compared depends on these parameters.
    """
    watched = frozenset(layers)
    frozen(without_checkpoints(model))
    parameters = dict(model.named_parameters(remove_duplicate=False))
    trained = list({id(parameters[name]): parameters[name] for name in vectors}.values())
    start = [parameter.detach().clone() for parameter in trained]
    every = probe.batches()
    held_out = every[-max(1, len(every) // HELD_OUT) :]
    every = every[: -len(held_out)] or every
    batches = list(islice(cycle(every), steps))

    @torch.no_grad()
    def judged() -> float:  # the original runs again each time: what it gives is too large to be kept meanwhile
        errors = [_error(model, _observe(reference, watched, probe, batch), probe, batch) for batch in held_out]
        return sum(map(float, errors)) / len(errors)

    before = judged()
    optimizer = torch.optim.Adam([parameter.requires_grad_(True) for parameter in trained], lr=RATE)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: (1 + math.cos(math.pi * step / steps)) / 2)
    originals = _ahead(lambda batch: _observe(reference, watched, probe, batch), batches, threads)
    for step, (batch, its) in enumerate(zip(batches, originals), 1):
        optimizer.zero_grad()
        with torch.enable_grad():
            error = _error(model, its, probe, batch)
        if not error.requires_grad:
            raise RiemError(
                'tuning: expected outputs, or inputs of layers, that depend on norms or biases and whose first '
                'dimension is the number of images, found none; leave tuning out'
            )
        error.backward()
        optimizer.step()
        schedule.step()
        if on_progress:
            on_progress(step / steps)
    frozen(model)
    tuned = Tuned(before, judged())
    if not tuned.kept:
        for parameter, values in zip(trained, start):
            parameter.copy_(values)
    return tuned


def _ahead(
    work: Callable[[tuple[int, int]], _Seen], batches: Sequence[tuple[int, int]], threads: int
) -> Iterator[_Seen]:
    """What ``work`` makes of each; with two threads or more the next one is made while this one is used.

    One after the other, unlike :func:`.parallel.in_order`: the work has one model.
    """
    if threads <= 1:
        yield from map(work, batches)
        return
    with ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        upcoming = pool.submit(work, batches[0])
        for batch in batches[1:]:
            made = upcoming.result()
            upcoming = pool.submit(work, batch)
            yield made
        yield upcoming.result()


@torch.no_grad()
def _observe(reference: nn.Module, layers: frozenset[str], probe: Probe, batch: tuple[int, int]) -> _Seen:
    inputs: dict[str, list[Tensor | None]] = {}

    def see(name: str, module: nn.Module, values: Tensor) -> None:
        is_image = len(values) == batch[1] - batch[0]
        inputs.setdefault(name, []).append(values if is_image else None)

    with watching(reference, dict.fromkeys(layers, Side.INPUT), see):
        outputs = probe.run(reference, *batch)
    return _Seen(outputs, inputs)


def _error(model: nn.Module, expected: _Seen, probe: Probe, batch: tuple[int, int]) -> Tensor:
    """That of the outputs, plus that of the features by its weight: a mean over tensors each."""
    of_features: list[Tensor] = []
    calls: Counter[str] = Counter()

    def see(name: str, module: nn.Module, values: Tensor) -> None:
        others = expected.inputs[name]
        other = others[calls[name]] if calls[name] < len(others) else None
        calls[name] += 1
        if other is not None and other.shape == values.shape:
            of_features.append(_relative_error(values, other))

    with watching(model, dict.fromkeys(expected.inputs, Side.INPUT), see):
        outputs = probe.run(model, *batch)
    of_outputs = [
        _relative_error(output, other)
        for output, other in zip(outputs, expected.outputs)
        if output.shape == other.shape and len(output) == batch[1] - batch[0]
    ]
    return _mean(of_outputs) + FEATURES * _mean(of_features)


def _relative_error(values: Tensor, expected: Tensor) -> Tensor:
    return (values - expected).square().mean() / expected.var(unbiased=False).clamp_min(SMALLEST)


def _mean(errors: list[Tensor]) -> Tensor:
    return torch.stack(errors).mean() if errors else torch.zeros(())
