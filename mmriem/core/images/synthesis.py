"""Images made out of a network itself: pixels that are optimised until its norms see what they have seen in training.

A BatchNorm holds mean and variance of its inputs on the images of training, so images whose statistics are these in
every layer carry what a metric, a recalibration and a training of norms need of real ones (Yin et al., "Dreaming to
distill", CVPR 2020; Cai et al., "ZeroQ", CVPR 2020). They start from procedural images; the loss of all together is

    mean over norms and channels of KL(N(mean, variance) of the images || N(mean, variance) of the norm)
    + OUTPUT_WEIGHT * a loss of the outputs, which says what is to be seen
    + VARIATION_WEIGHT * total variation

Statistics are those of all images, though only a few run at a time: each batch adds its own to those that the others
had one step before. So memory does not depend on the number of images, and the result neither on the number of threads
nor on that of processes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from queue import SimpleQueue
from typing import Any, Optional

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..errors import RiemError
from ..execution.executor import Executor
from ..execution.tasks import Progress, Task
from .probe import frozen_copy
from .style_search import telling_norms

RATE = 0.01
"""Learning rate of Adam at the first step, full range of a pixel 1; it falls to zero with a cosine."""
BETAS = (0.5, 0.9)
"""Decay rates of Adam's averages, which are short: images are few steps away from good ones."""
OUTPUT_WEIGHT = 0.1
VARIATION_WEIGHT = 0.02
SHIFT = 1 / 28
"""Most by which images are shifted at a step, relative to their shorter side."""
LEAST_VARIANCE = 1e-4
"""What is added to the variance of a channel, relative to that of its norm: a dead channel has none."""
MOST_STEPS = 40
"""Most steps of a synthesis by default."""
THREADS = 2
"""Most batches that run at a time, since each takes memory."""
LEAST_STEPS = 8
"""Least steps of a synthesis by default: fewer are not worth the time."""
MAX_MACS = 6e12
"""Multiply-adds of all forward passes together that the default number of steps is to stay below: minutes on two
cores."""


@dataclass(frozen=True)
class Move:
    """How images are shifted, round the edges, and mirrored at a step, so that no pixel is trained for one position."""

    down: int
    right: int
    mirrors: bool

    @classmethod
    def drawn(cls, height: int, width: int, key: Sequence[int]) -> Move:
        """The one of that key."""
        rng = np.random.default_rng(tuple(key))
        most = max(1, round(SHIFT * min(height, width)))
        down, right = (int(number) for number in rng.integers(-most, most + 1, 2))
        return cls(down, right, bool(rng.integers(2)))

    def __call__(self, images: Tensor) -> Tensor:
        """``(n, channels, height, width)``, moved."""
        moved = images.roll((self.down, self.right), (2, 3))
        return moved.flip(3) if self.mirrors else moved


Run = Callable[[nn.Module, Tensor, int], list[Tensor]]
"""Outputs of a network on pixels ``(n, channels, height, width)``, 0 to 1, in place of images ``first`` and on."""
OutputLoss = Callable[[Sequence[Tensor], int, Move], Optional[Tensor]]
"""Loss of outputs on images ``first`` and on, moved: it falls as they become what they are to be; None: no loss."""


class RandomClasses:
    """Loss of the outputs of a classifier: the cross entropy to a class for each image, all classes alike often.

    Args:
        count: of all images.
        seed: of the classes.
    """

    def __init__(self, count: int, seed: int) -> None:
        rng = np.random.default_rng((seed, count))
        self._places = (rng.permutation(count) + rng.uniform(size=count)) / count

    def __call__(self, outputs: Sequence[Tensor], first: int, move: Move) -> Tensor | None:
        """None where the outputs are not one tensor ``(n, classes)``."""
        if len(outputs) != 1 or outputs[0].dim() != 2 or outputs[0].shape[1] < 2:
            return None
        images, classes = outputs[0].shape
        wanted = (self._places[first : first + images] * classes).astype(int)
        return nn.functional.cross_entropy(outputs[0], torch.from_numpy(wanted).to(outputs[0].device))


def planned_steps(model: nn.Module, steps: int | None, images: Tensor, run: Run, macs: Callable[[], int]) -> int:
    """Steps to optimise procedural images by; 0 where there is nothing to optimise them for.

    Args:
        model: the network.
        steps: that are asked for; None: by default.
        images, run: see :func:`synthesise`.
        macs: tells the multiply-adds of one run on one image.

    Raises:
        RiemError: fewer than 0, or some, although the norms of the network hold no statistics, or there are no
            gradients that lead back from them to the pixels.
    """
    if steps is not None and steps < 0:
        raise RiemError(f'synthesis {steps}: expected 0 (none) or a number of steps')
    if steps == 0:
        return 0
    reason = ''
    if not telling_norms(model):
        reason = 'norms with statistics of the images of training'
    elif not leads_back(model, images, run):
        reason = 'gradients from its norms to the pixels'
    if steps and reason:
        raise RiemError(f'synthesis {steps}: expected {reason}, found none; leave it out')
    return 0 if reason else steps or default_steps(macs(), len(images))


def default_steps(macs: int, images: int) -> int:
    """Steps for so many images of a network that takes so many multiply-adds for one; 0: it would take too long.

    >>> default_steps(386_000_000, 41), default_steps(60_000_000_000, 8), default_steps(400_000_000_000, 8)
    (40, 12, 0)
    """
    steps = int(min(MAX_MACS / max(1, macs * images), MOST_STEPS))
    return steps if steps >= LEAST_STEPS else 0


def synthesis_share(steps: int) -> float:
    """Of the time of a whole compression, roughly: a step takes about a tenth of a metric of the same images.

    >>> synthesis_share(0), synthesis_share(40)
    (0.0, 0.5714285714285714)
    """
    return steps / (steps + 30)


def synthesise(
    model: nn.Module,
    images: Tensor,
    run: Run,
    output_loss: OutputLoss,
    steps: int,
    batch: int,
    *,
    seed: int = 0,
    executor: Executor | None = None,
    on_progress: Callable[[float], None] | None = None,
) -> Tensor:
    """The images, optimised: uint8 ``(n, channels, height, width)``, as those that it starts with.

    Args:
        model: the network, where it is to run; it is not changed.
        images: to start with.
        run: see :data:`Run`; called by several threads at a time, each with a model of its own in eval mode.
        output_loss: see :data:`OutputLoss`.
        steps: of Adam, 1 or more.
        batch: most images that run at a time.
        seed: of the moves.
        executor: who works; of several processes each calls this, and all get the same images. A journal keeps them.
        on_progress: called with the share that is done.
    """
    executor = executor or Executor()
    executor = replace(executor, threads=min(executor.threads, THREADS))  # each takes the memory of a batch
    work = _Work(_batches(images, batch, next(model.parameters()).device), len(images), run, output_loss, seed)
    owners = executor.owners([float(len(its.pixels)) for its in work.batches])
    finished = [
        Task('images', 1.0, partial(_finished, its), owner, f'images from {its.first} after {steps} steps')
        for its, owner in zip(work.batches, owners)
    ]
    missing = any(executor.is_mine(task) and executor.kept(task.key) is None for task in finished)
    if b'missing' in executor.workers.exchange(b'missing' if missing else b'kept'):
        _optimise(work, model, owners, steps, executor, on_progress)
    return torch.cat(executor.run(finished, _pack, _unpack))


def leads_back(model: nn.Module, images: Tensor, run: Run) -> bool:
    """Whether what its norms see has gradients in the pixels, as the first image tells; ``images`` are the start."""
    try:
        watched = _Watched(frozen_copy(model))
        with torch.enable_grad():
            run(watched.model, (images[:1].float() / 255).requires_grad_(True), 0)
        return watched.sums().requires_grad
    except Exception:  # a network is anybody's code, and most is never run with gradients
        return False


def _optimise(
    work: _Work,
    model: nn.Module,
    owners: list[int],
    steps: int,
    executor: Executor,
    on_progress: Callable[[float], None] | None,
) -> None:
    """All steps on all batches; in each process those of its own batches."""
    copies: SimpleQueue[_Watched] = SimpleQueue()  # one for each thread
    for _ in range(max(1, executor.threads)):
        copies.put(_Watched(frozen_copy(model)))

    def with_copy(work_on: Callable[[_Watched], Tensor], progress: Progress) -> Tensor:
        watched = copies.get()
        try:
            return work_on(watched)
        finally:
            copies.put(watched)

    def every(of_batch: Callable[[int], Callable[[_Watched], Tensor]]) -> list[Tensor]:
        tasks = [
            Task('images', len(its.pixels), partial(with_copy, of_batch(number)), owner)
            for number, (its, owner) in enumerate(zip(work.batches, owners))
        ]
        return executor.run(tasks, _pack, _unpack)

    found = every(lambda number: partial(work.look, number))
    for step in range(steps):
        rate = RATE * (1 + math.cos(math.pi * step / steps)) / 2
        others = [sum(found[:number] + found[number + 1 :], torch.zeros(())) for number in range(len(found))]
        found = every(lambda number: partial(work.improve, number, step, rate, others[number]))  # noqa: B023
        if on_progress:
            on_progress((step + 1) / steps)


@dataclass
class _Batch:
    """Some of the images, as they are optimised: ``pixels`` are 0 to 1."""

    first: int
    pixels: Tensor
    optimizer: torch.optim.Adam

    def finished(self) -> Tensor:
        return (self.pixels.detach() * 255).round().to(torch.uint8).cpu()


def _batches(images: Tensor, batch: int, device: torch.device) -> list[_Batch]:
    """About equal ones."""
    count = -(-len(images) // batch)
    edges = [number * len(images) // count for number in range(count + 1)]
    made = []
    for first, last in zip(edges, edges[1:]):
        pixels = (images[first:last].to(device).float() / 255).requires_grad_(True)
        made.append(_Batch(first, pixels, torch.optim.Adam([pixels], lr=RATE, betas=BETAS)))
    return made


@dataclass
class _Work:
    """All images, and what is wanted of them.

    Attributes:
        batches: of the images.
        total: number of images.
        run, output_loss, seed: see :func:`synthesise`.
    """

    batches: list[_Batch]
    total: int
    run: Run
    output_loss: OutputLoss
    seed: int

    def look(self, number: int, watched: _Watched) -> Tensor:
        """The sums of the statistics of a batch."""
        its = self.batches[number]
        with torch.no_grad():
            self.run(watched.model, its.pixels, its.first)
        return watched.sums().cpu()

    def improve(self, number: int, step: int, rate: float, others: Tensor, watched: _Watched) -> Tensor:
        """A step of Adam on the images of a batch; returns the sums of their statistics before it."""
        its = self.batches[number]
        pixels = its.pixels
        move = Move.drawn(pixels.shape[2], pixels.shape[3], (self.seed, step, number))
        with torch.enable_grad():
            outputs = self.run(watched.model, move(pixels), its.first)
            sums = watched.sums()
            loss = divergence(sums + others.to(sums), watched.weights) * (self.total / len(pixels))
            of_outputs = self.output_loss(outputs, its.first, move)
            if of_outputs is not None:
                loss = loss + OUTPUT_WEIGHT * of_outputs
            loss = loss + VARIATION_WEIGHT * _variation(pixels)
            (pixels.grad,) = torch.autograd.grad(loss, pixels)
        its.optimizer.param_groups[0]['lr'] = rate
        its.optimizer.step()
        with torch.no_grad():
            pixels.clamp_(0, 1)
        return sums.detach().cpu()


def _pack(values: Tensor) -> bytes:
    return safetensors.torch.save({'values': values.contiguous()})


def _unpack(data: bytes) -> Tensor:
    return safetensors.torch.load(data)['values']


def divergence(sums: Tensor, weights: Tensor) -> Tensor:
    """Mean over norms of the mean divergence of their channels, in nats; norms that saw nothing do not count.

    Args:
        sums: of each channel ``(channels of all norms, 3)``: of the standardised inputs, of their squares, of ones.
        weights: of each channel ``(channels of all norms,)``.
    """
    reached = sums[:, 2] > 0
    sums, weights = sums[reached], weights[reached]
    mean, square = sums[:, 0] / sums[:, 2], sums[:, 1] / sums[:, 2]
    variance = (square - mean.square()).clamp_min(0) + LEAST_VARIANCE
    each = 0.5 * (square - 1 - variance.log())
    return (each * weights).sum() / weights.sum()


def _finished(batch: _Batch, progress: Progress) -> Tensor:
    return batch.finished()


def _variation(images: Tensor) -> Tensor:
    """Mean absolute difference of neighbours, of rows and of columns."""
    return images.diff(dim=2).abs().mean() + images.diff(dim=3).abs().mean()


class _Watched:
    """A network that tells sums over the inputs of its norms, standardised by mean and variance that these hold."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._norms = telling_norms(model)
        self._seen: dict[nn.Module, Tensor] = {}
        means = [norm.get_buffer('running_mean') for norm in self._norms]
        self.weights = torch.cat([torch.full_like(mean, 1 / len(mean)) for mean in means])
        for norm in self._norms:
            norm.register_forward_pre_hook(self._see)

    def _see(self, norm: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        if not (isinstance(norm, _BatchNorm) and inputs[0].numel()):
            return None
        values, mean, variance = _Moments.apply(inputs[0])
        count = values.numel() // values.shape[1]
        expected = norm.get_buffer('running_var') + norm.eps
        shift = (mean - norm.get_buffer('running_mean')) / expected.sqrt()
        sums = count * torch.stack([shift, variance / expected + shift.square(), torch.ones_like(shift)], 1)
        self._seen[norm] = self._seen[norm] + sums if norm in self._seen else sums
        return (values, *inputs[1:])

    def sums(self) -> Tensor:
        """Of what has been seen since the last call, ``(channels of all norms, 3)``."""
        seen, self._seen = self._seen, {}
        nothing = (norm.get_buffer('running_mean').new_zeros(norm.num_features, 3) for norm in self._norms)
        return torch.cat([seen.get(norm, zeros) for norm, zeros in zip(self._norms, nothing)])


class _Moments(torch.autograd.Function):
    """Values, and mean and variance of each channel; the gradient takes one pass more over the values, not several."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        variance, mean = torch.var_mean(values, [0, *range(2, values.dim())], unbiased=False)
        ctx.save_for_backward(values, mean)
        return values.view_as(values), mean, variance

    @staticmethod
    def backward(ctx: Any, of_values: Tensor, of_mean: Tensor, of_variance: Tensor) -> Tensor:
        values, mean = ctx.saved_tensors
        slope = of_variance * 2 / (values.numel() // values.shape[1])
        offset = of_mean / (values.numel() // values.shape[1]) - slope * mean
        shape = [1, -1, *[1] * (values.dim() - 2)]
        return torch.addcmul(of_values + offset.view(shape), values, slope.view(shape))
