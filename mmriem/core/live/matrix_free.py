"""Applying a represented weight without ever holding it: block by block, for ``linear`` and convolutions.

A block of rows of the weight is made from its states, applied and dropped; for gradients it is made again. So beside
the states and the activations, memory grows with ``BLOCK`` weights, not with all of them. A convolution is applied by
blocks of output channels (rows of the im2col product) or of input channels (its columns), each left to the backend's
own ``conv2d``; a transposed one likewise by output channels.

A low-rank weight is two thin products, one for each :class:`Factor`, and has no rows made at all.

The states of a model that is only run can stay packed as they are in a file (:class:`PackedTensor`).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..representations.blocks import EVERYTHING, Block, Factor, State

BLOCK = 1 << 17
"""Most weights that are made at a time: half a MiB in float32. A row is never divided."""


def linear(
    x: Tensor,
    factors: Sequence[Factor],
    states: Mapping[str, State],
    dtype: torch.dtype,
    bias: Tensor | None = None,
    *,
    most: int | None = None,
) -> Tensor:
    """``x W^T + bias`` of ``(..., in)``: ``(..., out)``.

    Args:
        x: the inputs.
        factors: of ``W``, the one that is applied first coming first.
        states: by name; those that require gradients get them.
        dtype: of the weight as the layer would hold it; under autocast, that of autocast is taken.
        bias: ``(out,)``.
        most: weights that are made at a time; ``BLOCK`` where it is not given.
    """
    operations: list[_Operation] = [_Linear()] * len(factors)
    return _product(x, factors, states, dtype, operations, bias, most)


def conv2d(
    x: Tensor,
    factors: Sequence[Factor],
    states: Mapping[str, State],
    dtype: torch.dtype,
    shape: Sequence[int],
    bias: Tensor | None = None,
    *,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    most: int | None = None,
) -> Tensor:
    """The convolution with a weight of ``shape`` ``(out, in / groups, kh, kw)``, see :func:`linear`.

    ``x`` is ``(batch, in, h, w)`` or ``(in, h, w)``; the keywords are those of ``torch.nn.functional.conv2d``. Grouped
    convolutions have one factor.
    """
    first = _Conv2d((shape[2], shape[3]), stride, padding, dilation, groups, shape[0] // groups)
    operations: list[_Operation] = [first, *[_Conv2d((1, 1))] * (len(factors) - 1)]
    return _product(x, factors, states, dtype, operations, bias, most)


def conv_transpose2d(
    x: Tensor,
    factors: Sequence[Factor],
    states: Mapping[str, State],
    dtype: torch.dtype,
    shape: Sequence[int],
    bias: Tensor | None = None,
    *,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
    most: int | None = None,
) -> Tensor:
    """The transposed convolution with a weight of ``shape`` ``(in, out / groups, kh, kw)``, see :func:`conv2d`.

    Its matrix has a row for each output channel; there is one factor, whose rows alone are divided.
    """
    how = _ConvTranspose2d((shape[2], shape[3]), stride, padding, output_padding, dilation, groups, shape[1])
    return _product(x, factors, states, dtype, [how], bias, most)


def _product(
    x: Tensor,
    factors: Sequence[Factor],
    states: Mapping[str, State],
    dtype: torch.dtype,
    operations: Sequence[_Operation],
    bias: Tensor | None,
    most: int | None,
) -> Tensor:
    device = x.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        x, bias = x.to(dtype), None if bias is None else bias.to(dtype)
    with torch.autocast(device, enabled=False):
        for number, (factor, operation) in enumerate(zip(factors, operations), 1):
            added = bias if number == len(factors) else None
            own = {name: states[name] for name in factor.names}
            tensors = {name: state for name, state in own.items() if isinstance(state, Tensor)}
            step = _Step(factor, operation, dtype, own, tuple(tensors), most or BLOCK)
            if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (x, *tensors.values())):
                x = _Differentiable.apply(x, step.without_tensors(), *tensors.values())
                x = x if added is None else x + operation.along_outputs(added)
            elif added is not None and torch.is_grad_enabled() and added.requires_grad:
                x = step.run(x, own, None) + operation.along_outputs(added)
            else:
                x = step.run(x, own, added)
    return x


class _Operation(Protocol):
    """How a block of a matrix is applied; ``kernel_size`` columns of the matrix belong to one input channel."""

    @property
    def dim(self) -> int:
        """The dimension of channels or features."""

    @property
    def kernel_size(self) -> int:
        """See the class."""

    def __call__(self, x: Tensor, weight: Tensor, outputs: slice, bias: Tensor | None) -> Tensor:
        """The outputs of these rows, ``weight``, of the matrix, with their ``bias``."""

    def along_outputs(self, bias: Tensor) -> Tensor:
        """The bias in a shape that goes with all outputs."""


@dataclass(frozen=True)
class _Linear:
    dim: int = -1
    kernel_size: int = 1

    def __call__(self, x: Tensor, weight: Tensor, outputs: slice, bias: Tensor | None) -> Tensor:
        return F.linear(x, weight, bias)

    def along_outputs(self, bias: Tensor) -> Tensor:
        return bias


def _whole_groups(outputs: slice, size: int) -> Iterator[tuple[slice, int, int]]:
    """Rows in one group of ``size``, or of several whole ones; the first group, and how many there are."""
    start = outputs.start
    while start < outputs.stop:
        group, within = divmod(start, size)
        count = 1 if within else max(1, (outputs.stop - start) // size)
        stop = min(outputs.stop, (group + count) * size)
        yield slice(start, stop), group, count
        start = stop


@dataclass(frozen=True)
class _Conv2d:
    kernel: tuple[int, int]
    stride: Any = 1
    padding: Any = 0
    dilation: Any = 1
    groups: int = 1
    outputs_per_group: int = 0
    dim: int = -3

    @property
    def kernel_size(self) -> int:
        return self.kernel[0] * self.kernel[1]

    def __call__(self, x: Tensor, weight: Tensor, outputs: slice, bias: Tensor | None) -> Tensor:
        weight = weight.view(len(weight), -1, *self.kernel)
        if self.groups == 1:
            return F.conv2d(x, weight, bias, self.stride, self.padding, self.dilation)
        channels = x.shape[self.dim] // self.groups
        parts = []
        for rows, first, count in _whole_groups(outputs, self.outputs_per_group):
            own = x.narrow(self.dim, first * channels, count * channels)
            part = slice(rows.start - outputs.start, rows.stop - outputs.start)
            added = None if bias is None else bias[part]
            parts.append(F.conv2d(own, weight[part], added, self.stride, self.padding, self.dilation, count))
        return parts[0] if len(parts) == 1 else torch.cat(parts, self.dim)

    def along_outputs(self, bias: Tensor) -> Tensor:
        return bias[:, None, None]


@dataclass(frozen=True)
class _ConvTranspose2d:
    kernel: tuple[int, int]
    stride: Any
    padding: Any
    output_padding: Any
    dilation: Any
    groups: int
    outputs_per_group: int
    dim: int = -3
    kernel_size: int = 1  # its columns are never divided

    def __call__(self, x: Tensor, weight: Tensor, outputs: slice, bias: Tensor | None) -> Tensor:
        channels = x.shape[self.dim] // self.groups
        parts = []
        for rows, first, count in _whole_groups(outputs, self.outputs_per_group):
            own = x.narrow(self.dim, first * channels, count * channels)
            part = slice(rows.start - outputs.start, rows.stop - outputs.start)
            kernels = weight[part].view(count, -1, channels, *self.kernel).transpose(1, 2).flatten(0, 1)
            added = None if bias is None else bias[part]
            how = (self.stride, self.padding, self.output_padding, count, self.dilation)
            parts.append(F.conv_transpose2d(own, kernels, added, *how))
        return parts[0] if len(parts) == 1 else torch.cat(parts, self.dim)

    def along_outputs(self, bias: Tensor) -> Tensor:
        return bias[:, None, None]


@dataclass(frozen=True, eq=False)
class _Step:
    """One factor to be applied in one way.

    Attributes:
        states: all of the factor, or those alone that are no tensors.
        tensors: names of those that are.
        most: weights that are made at a time.
    """

    factor: Factor
    operation: _Operation
    dtype: torch.dtype
    states: Mapping[str, State]
    tensors: tuple[str, ...]
    most: int

    def without_tensors(self) -> _Step:
        """What autograd need not see."""
        others = {name: state for name, state in self.states.items() if name not in self.tensors}
        return replace(self, states=others)

    def blocks(self, states: Mapping[str, State]) -> Iterator[Block]:
        return self.factor.blocks(states, self.most, self.operation.kernel_size)

    def run(self, x: Tensor, states: Mapping[str, State], bias: Tensor | None = None) -> Tensor:
        """All blocks: side by side where they divide the rows, else added up."""
        blocks = self.blocks(states)
        first = next(blocks)
        every = itertools.chain([first], blocks)
        if first.inputs == EVERYTHING:
            return self._side_by_side(x, every, self.factor.outputs(states), bias)
        total = self._added_up(x, every).to(x.dtype)
        return total if bias is None else total + self.operation.along_outputs(bias)

    def _side_by_side(self, x: Tensor, blocks: Iterator[Block], rows: int, bias: Tensor | None) -> Tensor:
        whole = None
        for block in blocks:
            part = self.apply(x, block.states, block.outputs, None if bias is None else bias[block.outputs])
            if part.shape[self.operation.dim] == rows:
                return part
            if whole is None:
                size = list(part.shape)
                size[self.operation.dim] = rows
                whole = part.new_empty(size)
            self.outputs(whole, block).copy_(part)
            del part
        return _of_some(whole)

    def _added_up(self, x: Tensor, blocks: Iterator[Block]) -> Tensor:
        """In float32 at least."""
        total = None
        for block in blocks:
            part = self.apply(self.inputs(x, block), block.states, block.outputs)
            if total is None:
                total = part.to(torch.promote_types(part.dtype, torch.float32))
            else:
                total += part
        return _of_some(total)

    def apply(self, x: Tensor, states: dict[str, Tensor], outputs: slice, bias: Tensor | None = None) -> Tensor:
        return self.operation(x, self.factor.matrix(states).to(x.device, self.dtype), outputs, bias)

    def inputs(self, x: Tensor, block: Block) -> Tensor:
        """The part of ``x`` that a block is applied to."""
        if block.inputs == EVERYTHING:
            return x
        kernel_size = self.operation.kernel_size
        first, last = block.inputs.start // kernel_size, block.inputs.stop // kernel_size
        return x.narrow(self.operation.dim, first, last - first)

    def outputs(self, y: Tensor, block: Block) -> Tensor:
        """The part of ``y`` that a block adds to."""
        if block.outputs == EVERYTHING:
            return y
        return y.narrow(self.operation.dim, block.outputs.start, block.outputs.stop - block.outputs.start)

    def gradients(self, x: Tensor, states: dict[str, Tensor], upstream: Tensor, needed: Sequence[bool]) -> list:
        """Those of ``x`` and of each of ``tensors`` that is needed, else None; blocks are made again."""
        needs_x, *needs = needed
        trained = [name for name, need in zip(self.tensors, needs) if need]
        x_gradient = torch.zeros_like(x, dtype=torch.promote_types(x.dtype, torch.float32)) if needs_x else None
        totals = {name: torch.zeros_like(states[name]) for name in trained}
        for block, own in zip(self.blocks(states), self.blocks({**states, **totals})):
            part = self.inputs(x, block).detach().requires_grad_(needs_x)
            leaves = {name: state.detach() for name, state in block.states.items()}
            for name in trained:
                leaves[name].requires_grad_()
            with torch.enable_grad():
                y = self.apply(part, leaves, block.outputs)
            wanted = [part] * needs_x + [leaves[name] for name in trained]
            found = list(torch.autograd.grad(y, wanted, self.outputs(upstream, block).to(y.dtype)))
            if x_gradient is not None:
                self.inputs(x_gradient, block).add_(found.pop(0))
            for name, gradient in zip(trained, found):
                own.states[name].add_(gradient)
        return [None if x_gradient is None else x_gradient.to(x.dtype), *(totals.get(name) for name in self.tensors)]


def _of_some(made: Tensor | None) -> Tensor:
    if made is None:
        raise ValueError('expected a matrix with blocks, found none')
    return made


class _Differentiable(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, step: _Step, *tensors: Tensor) -> Tensor:
        ctx.step = step
        ctx.save_for_backward(x, *tensors)
        return step.run(x, {**step.states, **dict(zip(step.tensors, tensors))})

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        x, *tensors = ctx.saved_tensors
        step, (needs_x, _, *needs) = ctx.step, ctx.needs_input_grad
        states = {**step.states, **dict(zip(step.tensors, tensors))}
        with torch.autocast(x.device.type, enabled=False):
            x_gradient, *others = step.gradients(x, states, upstream, (needs_x, *needs))
        return (x_gradient, None, *others)
