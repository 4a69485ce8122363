"""Applying a represented weight without ever holding it: block by block, for ``linear`` and ``conv2d``.

A block of rows of the weight is made from its states, applied and dropped; for gradients it is made again. So beside
the states and the activations, memory grows with ``BLOCK`` weights, not with all of them. A convolution is applied by
blocks of output channels (rows of the im2col product) or of input channels (its columns), each left to the backend's
own ``conv2d``.

A low-rank weight is two thin products, one for each :class:`Factor`, and has no rows made at all.

The states of a model that is only run can stay packed as they are in a file (:class:`PackedTensor`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils._pytree import tree_map

from ..representations.blocks import EVERYTHING, Block, Factor, State

BLOCK = 1 << 17
"""Most weights that are made at a time: half a MiB in float32. A row is never divided."""


def linear(x: Tensor, factors: Sequence[Factor], states: Mapping[str, State], dtype: torch.dtype) -> Tensor:
    """``x W^T`` of ``(..., in)``: ``(..., out)``.

    Args:
        x: the inputs.
        factors: of ``W``, the one that is applied first coming first.
        states: by name; those that require gradients get them.
        dtype: of the weight as the layer would hold it; under autocast, that of autocast is taken.
    """
    return _product(x, factors, states, dtype, [_Linear()] * len(factors))


def conv2d(
    x: Tensor,
    factors: Sequence[Factor],
    states: Mapping[str, State],
    dtype: torch.dtype,
    shape: Sequence[int],
    *,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    """The convolution with a weight of ``shape`` ``(out, in / groups, kh, kw)``, see :func:`linear`.

    ``x`` is ``(batch, in, h, w)`` or ``(in, h, w)``; the keywords are those of ``torch.nn.functional.conv2d``, without
    a bias. Grouped convolutions have one factor.
    """
    first = _Conv2d(tuple(shape[2:]), stride, padding, dilation, groups, shape[0] // groups)
    return _product(x, factors, states, dtype, [first, *[_Conv2d((1, 1))] * (len(factors) - 1)])


def _product(
    x: Tensor,
    factors: Sequence[Factor],
    states: Mapping[str, State],
    dtype: torch.dtype,
    operations: Sequence[_Operation],
) -> Tensor:
    device = x.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        x = x.to(dtype)
    with torch.autocast(device, enabled=False):
        for factor, operation in zip(factors, operations):
            own = {name: states[name] for name in factor.names}
            tensors = {name: state for name, state in own.items() if isinstance(state, Tensor)}
            step = _Step(factor, operation, dtype, own, tuple(tensors))
            if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (x, *tensors.values())):
                x = _Differentiable.apply(x, step.without_tensors(), *tensors.values())
            else:
                x = step.run(x, own)
    return x


class _Operation(Protocol):
    """How a block of a matrix is applied; ``kernel_size`` columns of the matrix belong to one input channel."""

    dim: int
    kernel_size: int

    def __call__(self, x: Tensor, weight: Tensor, outputs: slice) -> Tensor:
        """The outputs of these rows, ``weight``, of the matrix."""


@dataclass(frozen=True)
class _Linear:
    dim: int = -1
    kernel_size: int = 1

    def __call__(self, x: Tensor, weight: Tensor, outputs: slice) -> Tensor:
        return F.linear(x, weight)


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

    def __call__(self, x: Tensor, weight: Tensor, outputs: slice) -> Tensor:
        weight = weight.view(len(weight), -1, *self.kernel)
        if self.groups == 1:
            return F.conv2d(x, weight, None, self.stride, self.padding, self.dilation)
        channels = x.shape[self.dim] // self.groups
        parts = []
        for rows, first, count in self._whole_groups(outputs):
            own = x.narrow(self.dim, first * channels, count * channels)
            kernels = weight[rows.start - outputs.start : rows.stop - outputs.start]
            parts.append(F.conv2d(own, kernels, None, self.stride, self.padding, self.dilation, count))
        return torch.cat(parts, self.dim)

    def _whole_groups(self, outputs: slice) -> Iterator[tuple[slice, int, int]]:
        """Rows in one group, or of several whole ones; the first group, and how many there are."""
        start, size = outputs.start, self.outputs_per_group
        while start < outputs.stop:
            group, within = divmod(start, size)
            count = 1 if within else max(1, (outputs.stop - start) // size)
            stop = min(outputs.stop, (group + count) * size)
            yield slice(start, stop), group, count
            start = stop


@dataclass(frozen=True, eq=False)
class _Step:
    """One factor to be applied in one way.

    Attributes:
        states: all of the factor, or those alone that are no tensors.
        tensors: names of those that are.
    """

    factor: Factor
    operation: _Operation
    dtype: torch.dtype
    states: Mapping[str, State]
    tensors: tuple[str, ...]

    def without_tensors(self) -> _Step:
        """What autograd need not see."""
        others = {name: state for name, state in self.states.items() if name not in self.tensors}
        return _Step(self.factor, self.operation, self.dtype, others, self.tensors)

    def blocks(self, states: Mapping[str, State]) -> Iterator[Block]:
        return self.factor.blocks(states, BLOCK, self.operation.kernel_size)

    def run(self, x: Tensor, states: Mapping[str, State]) -> Tensor:
        """All blocks; sums over several of them are in float32 at least."""
        total = None
        for block in self.blocks(states):
            part = self.apply(self.inputs(x, block), block.states, block.outputs)
            if total is None:
                size = list(part.shape)
                size[self.operation.dim] = self.factor.outputs(states)
                total = part.new_zeros(size, dtype=torch.promote_types(part.dtype, torch.float32))
            self.outputs(total, block).add_(part)
            del part
        return total.to(x.dtype)

    def apply(self, x: Tensor, states: dict[str, Tensor], outputs: slice) -> Tensor:
        return self.operation(x, self.factor.matrix(states).to(self.dtype), outputs)

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
            if needs_x:
                self.inputs(x_gradient, block).add_(found.pop(0))
            for name, gradient in zip(trained, found):
                own.states[name].add_(gradient)
        return [x_gradient.to(x.dtype) if needs_x else None, *(totals.get(name) for name in self.tensors)]


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


class Source(Protocol):
    """What an :class:`UnmadeWeight` asks for."""

    def factors(self, grouped: bool) -> tuple[Sequence[Factor], Mapping[str, State]]:
        """The factors of the weight matrix and its states; one factor where the layer is ``grouped``."""

    def made(self) -> Tensor:
        """The weight."""


class UnmadeWeight(Tensor):
    """Stands for a weight: ``F.linear`` and ``F.conv2d`` apply it in blocks, whatever else reads it has it made."""

    source: Source

    @staticmethod
    def __new__(
        cls, source: Source, shape: Sequence[int], dtype: torch.dtype, device: torch.device, requires_grad: bool = False
    ) -> UnmadeWeight:
        weight = Tensor._make_wrapper_subclass(cls, shape, dtype=dtype, device=device, requires_grad=requires_grad)
        weight.source = source
        return weight

    def __repr__(self, **_: Any) -> str:
        return f'UnmadeWeight({tuple(self.shape)}, dtype={self.dtype}, device={self.device})'

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _APPLIED and isinstance(kwargs.get('weight', args[1] if len(args) > 1 else None), cls):
            return _APPLIED[func](*args, **kwargs)
        if func in _METADATA:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        return func(*tree_map(_made, args), **tree_map(_made, kwargs))

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*tree_map(_made, args), **tree_map(_made, kwargs or {}))


def _made(value: Any) -> Any:
    return value.source.made() if isinstance(value, UnmadeWeight) else value


def _linear(input: Tensor, weight: UnmadeWeight, bias: Tensor | None = None) -> Tensor:
    factors, states = weight.source.factors(grouped=False)
    y = linear(input, factors, states, weight.dtype)
    return y if bias is None else y + _made(bias).to(y.dtype)


def _conv2d(
    input: Tensor,
    weight: UnmadeWeight,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    factors, states = weight.source.factors(grouped=groups > 1)
    how = dict(stride=stride, padding=padding, dilation=dilation, groups=groups)
    y = conv2d(input, factors, states, weight.dtype, weight.shape, **how)
    return y if bias is None else y + _made(bias).to(y.dtype)[:, None, None]


_APPLIED = {F.linear: _linear, F.conv2d: _conv2d}
_METADATA = {Tensor.shape.__get__, Tensor.dtype.__get__, Tensor.device.__get__, Tensor.ndim.__get__}
_METADATA |= {Tensor.requires_grad.__get__, Tensor.size, Tensor.dim, Tensor.numel, Tensor.is_floating_point}
