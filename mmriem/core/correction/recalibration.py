"""Norms and biases of a compressed network, set so that its activations have the statistics of the original's.

Both networks run on the same procedural images. Where an original activation has mean ``m`` and variance ``v`` in a
channel and the compressed one ``m'`` and ``v'``, a BatchNorm is told of an input that has moved by that much, and the
bias of any other layer takes the difference of the means. Only differences between the two networks enter, so the
images need not have the statistics of the real ones. Layers are recalibrated in the order in which they run, each on
the inputs that the recalibrated ones before it give.

The original runs beside the compressed network, in another process or thread, where there is one: it tells the
statistics of each layer as they come, and the compressed network waits for those of the layer that it is at.
"""

from __future__ import annotations

import functools
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Optional

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from ..errors import RiemError
from ..execution.executor import Executor
from ..execution.workers import join, split
from ..images.probe import Probe
from ..images.watching import Side, watching

OBSERVER = 1
"""Rank of the process that runs the original network where there are several processes."""
FEW_IMAGES = 2
"""Images that tell beforehand how often each layer is called; a loop over images calls it twice."""
MAX_IMAGES = 64
"""Most images of a recalibration: one batch, because a layer must be recalibrated before the next one runs."""
GAINS = (1 / 3, 3.0)
"""Least and greatest factor on the standard deviation of a channel: one that is dead on the images tells nothing."""
FLOOR = 1e-6
"""What is added to the variance of a channel, relative to the mean variance of all channels."""


@dataclass
class _Statistics:
    """Of one call of a layer: per channel, over images and positions."""

    mean: Tensor
    variance: Tensor
    count: int

    @classmethod
    def of(cls, values: Tensor, channel: int) -> _Statistics:
        values = values.detach()
        others = [place for place in range(values.dim()) if place != channel % values.dim()]
        mean = values.mean(others, keepdim=True)
        variance = (values - mean).square_().mean(others)
        return cls(mean.flatten(), variance, values.numel() // len(variance))

    def to(self, device: torch.device) -> _Statistics:
        return _Statistics(self.mean.to(device), self.variance.to(device), self.count)


_See = Callable[[str, nn.Module, _Statistics], Optional[Tensor]]


@dataclass
class _Observed:
    """What the original tells of one call of a layer.

    Attributes:
        name: of the layer.
        is_once: whether a few images have called it exactly once: then it is recalibrated as it runs, else afterwards.
        statistics: of this call.
    """

    name: str
    is_once: bool
    statistics: _Statistics

    def to_bytes(self) -> bytes:
        tensors = {'mean': self.statistics.mean, 'variance': self.statistics.variance}
        numbers = {'count': torch.tensor(self.statistics.count), 'is once': torch.tensor(self.is_once)}
        return join([self.name.encode(), safetensors.torch.save({**tensors, **numbers})])

    @classmethod
    def from_bytes(cls, data: bytes) -> _Observed:
        name, packed = split(data)
        found = safetensors.torch.load(packed)
        statistics = _Statistics(found['mean'], found['variance'], int(found['count']))
        return cls(name.decode(), bool(found['is once']), statistics)


class _Original:
    """What the original has told, which is waited for only as far as it is asked for."""

    def __init__(self, told: Iterator[bytes]) -> None:
        self._told = told
        self._once: dict[str, _Statistics] = {}
        self._every: dict[str, list[_Statistics]] = {}

    def once(self, name: str) -> _Statistics | None:
        """The statistics to recalibrate a layer by as it runs; None where that is done later, or not at all."""
        while name not in self._every and self._listen():
            pass
        return self._once.get(name)

    def every(self) -> dict[str, list[_Statistics]]:
        """Those of all calls of each layer."""
        while self._listen():
            pass
        return self._every

    def _listen(self) -> bool:
        data = next(self._told, None)
        if data is None:
            return False
        observed = _Observed.from_bytes(data)
        self._every.setdefault(observed.name, []).append(observed.statistics)
        if observed.is_once:
            self._once.setdefault(observed.name, observed.statistics)
        return True


def recalibrate(
    model: nn.Module,
    reference: nn.Module,
    probe: Probe,
    executor: Executor | None = None,
    told: list[bytes] | None = None,
) -> None:
    """Recalibrate the norms and biases of ``model``, the compressed form of ``reference``, in place.

    The result does not depend on the executor. Of several processes the first one calls this, and that of rank
    ``OBSERVER`` calls :func:`observe`.

    Args:
        model, reference: in eval mode, on the same device.
        probe: the images.
        executor: who works.
        told: what the original has told before on these images, so that it does not run again; an empty list takes it.
            Several processes do without.

    Raises:
        Interrupted: the other process is gone.
    """
    executor, told = executor or Executor(), [] if told is None else told
    if executor.workers.size > 1:
        _recalibrate(model, reference, probe, iter(lambda: executor.workers.receive(OBSERVER), b''))
    elif told:
        _recalibrate(model, reference, probe, iter(told))
    elif executor.threads > 1:
        _recalibrate_beside(model, reference, probe, told)
    else:
        every: list[bytes] = []
        _observe(reference, probe, every.append)
        told.extend(every)
        _recalibrate(model, reference, probe, iter(told))


def observe(reference: nn.Module, probe: Probe, executor: Executor) -> None:
    """Run the original and tell the first process the statistics of each layer as they come, then nothing more."""
    _observe(reference, probe, lambda data: executor.workers.post(data, 0))
    executor.workers.post(b'', 0)


@torch.no_grad()
def _observe(reference: nn.Module, probe: Probe, tell: Callable[[bytes], None]) -> None:
    last = min(probe.images, MAX_IMAGES)
    calls: Counter[str] = Counter()
    with _watching(reference, lambda name, module, statistics: calls.update([name])):
        probe.run(reference, 0, min(FEW_IMAGES, last))

    def see(name: str, module: nn.Module, statistics: _Statistics) -> None:
        tell(_Observed(name, calls[name] == 1, statistics).to_bytes())

    with _watching(reference, see):
        probe.run(reference, 0, last)


def _recalibrate_beside(model: nn.Module, reference: nn.Module, probe: Probe, kept: list[bytes]) -> None:
    """The original runs in a thread of its own; all that it told is kept in the end."""
    every: list[bytes] = []
    told: SimpleQueue[bytes] = SimpleQueue()
    stop = threading.Event()

    def tell(data: bytes) -> None:
        if stop.is_set():
            raise RiemError('stopped')
        every.append(data)
        told.put(data)

    def listen() -> Iterator[bytes]:
        yield from iter(told.get, b'')
        observed.result()  # the end may be that of an error

    with ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        observed = pool.submit(_observe, reference, probe, tell)
        observed.add_done_callback(lambda _: told.put(b''))
        try:
            _recalibrate(model, reference, probe, listen())
        finally:
            stop.set()
    kept.extend(every)


@torch.no_grad()
def _recalibrate(model: nn.Module, reference: nn.Module, probe: Probe, told: Iterator[bytes]) -> None:
    original = _Original(told)
    references = dict(reference.named_modules())
    found: dict[str, list[_Statistics]] = {}

    def recalibrate(name: str, module: nn.Module, statistics: _Statistics) -> Tensor | None:
        found.setdefault(name, []).append(statistics)
        expected = original.once(name)
        if expected is None or len(found[name]) > 1:
            return None
        return _adjust(module, references[name], expected, statistics)

    with _watching(model, recalibrate):
        probe.run(model, 0, min(probe.images, MAX_IMAGES))
    modules = dict(model.named_modules())
    for name, expected in original.every().items():
        its = found.get(name, [])
        if original.once(name) is None and len(its) == len(expected):  # recalibrated by what all calls say
            _adjust(modules[name], references[name], _pooled(expected), _pooled(its))


def _adjust(module: nn.Module, reference: nn.Module, expected: _Statistics, found: _Statistics) -> Tensor | None:
    """Change norm or bias; returns what is to be added to each channel of the output, None for a norm.

    Channels whose statistics are beyond float32 stay as they are.
    """
    expected = expected.to(found.mean.device)
    if not (isinstance(module, _BatchNorm) and isinstance(reference, _BatchNorm)):
        difference = (expected.mean - found.mean).nan_to_num(0.0, 0.0, 0.0)
        module.get_parameter('bias').add_(difference)
        return difference
    if module.affine and reference.affine:  # another file format may have folded the statistics into these
        module.weight.copy_(reference.weight)
        module.bias.copy_(reference.bias)
    before = expected.variance + FLOOR * expected.variance.mean() + 1e-12
    after = found.variance + FLOOR * expected.variance.mean() + 1e-12
    gain = (after / before).sqrt().clamp(*GAINS)
    means = [norm.get_buffer('running_mean') for norm in (module, reference)]
    variances = [norm.get_buffer('running_var') for norm in (module, reference)]
    mean = found.mean - gain * (expected.mean - means[1])
    variance = ((variances[1] + reference.eps) * gain.square() - module.eps).clamp_min(0)
    finite = mean.isfinite() & variance.isfinite()
    means[0].copy_(mean.where(finite, means[1]))
    variances[0].copy_(variance.where(finite, variances[1]))
    return None


def _pooled(parts: list[_Statistics]) -> _Statistics:
    count = sum(part.count for part in parts)
    mean = functools.reduce(torch.add, (part.mean * part.count for part in parts)) / count
    squares = ((part.variance + part.mean.square()) * part.count for part in parts)
    square = functools.reduce(torch.add, squares) / count
    return _Statistics(mean, (square - mean.square()).clamp_min(0), count)


def recalibrated_keys(model: nn.Module) -> set[str]:
    """State-dict keys of what :func:`recalibrate` may change."""
    return {
        f'{name}.{attribute}' if name else attribute
        for name, module in model.named_modules()
        for attribute in _recalibrated(module)
    }


def _recalibrated(module: nn.Module) -> tuple[str, ...]:
    if isinstance(module, _BatchNorm):
        tracks = module.track_running_stats and module.running_mean is not None
        return ('running_mean', 'running_var') if tracks else ()
    has_bias = isinstance(module, (_ConvNd, nn.Linear, nn.LayerNorm, nn.GroupNorm)) and module.bias is not None
    return ('bias',) if has_bias else ()


@contextmanager
def _watching(model: nn.Module, see: _See) -> Iterator[None]:
    """Call ``see`` with the input statistics of each BatchNorm and the output statistics of each layer with a bias."""
    modules = {name: module for name, module in model.named_modules() if _recalibrated(module)}
    sides = {name: Side.OUTPUT if 'bias' in _recalibrated(module) else Side.INPUT for name, module in modules.items()}

    def tell(name: str, module: nn.Module, values: Tensor) -> Tensor | None:
        if not values.numel():
            return None
        if sides[name] is Side.INPUT:
            see(name, module, _Statistics.of(values, 1))
            return None
        channel = 1 if isinstance(module, (_ConvNd, nn.GroupNorm)) else -1
        added = see(name, module, _Statistics.of(values, channel))
        if added is None:
            return None
        return values + (added if channel == -1 else added.reshape(-1, *[1] * (values.dim() - 2)))

    was_training = model.training
    model.eval()
    try:
        with watching(model, sides, tell):
            yield
    finally:
        model.train(was_training)
