"""A tensor that stands for a weight which is not made: ``linear`` and convolutions apply its states in its place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_map

from ..representations.blocks import Factor, State
from .matrix_free import conv2d, conv_transpose2d, linear


class Source(Protocol):
    """What an :class:`UnmadeWeight` asks for."""

    @property
    def most(self) -> int | None:
        """Weights that are made at a time; None: as :mod:`.matrix_free` has it."""

    def factors(self, grouped: bool) -> tuple[Sequence[Factor], Mapping[str, State]]:
        """The factors of the weight matrix and its states; one factor where the layer is ``grouped``."""

    def made(self) -> Tensor:
        """The weight."""


class UnmadeWeight(Tensor):
    """Stands for a weight: linear and convolution functions apply it in blocks, whatever else reads it has it made."""

    source: Source

    @staticmethod
    def __new__(
        cls, source: Source, shape: Sequence[int], dtype: torch.dtype, device: torch.device, requires_grad: bool = False
    ) -> UnmadeWeight:
        weight = Tensor._make_wrapper_subclass(cls, shape, dtype=dtype, device=device, requires_grad=requires_grad)
        weight.source = source
        return weight

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]  # torch has no hints there
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
    def __torch_dispatch__(  # type: ignore[override]  # the hint of torch counts func as self
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return func(*tree_map(_made, args), **tree_map(_made, kwargs or {}))


def _made(value: Any) -> Any:
    return value.source.made() if isinstance(value, UnmadeWeight) else value


def _linear(input: Tensor, weight: UnmadeWeight, bias: Tensor | None = None) -> Tensor:
    factors, states = weight.source.factors(grouped=False)
    return linear(input, factors, states, weight.dtype, _made(bias), most=weight.source.most)


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
    how = dict(stride=stride, padding=padding, dilation=dilation, groups=groups, most=weight.source.most)
    return conv2d(input, factors, states, weight.dtype, weight.shape, _made(bias), **how)


def _conv_transpose2d(
    input: Tensor,
    weight: UnmadeWeight,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Tensor:
    factors, states = weight.source.factors(grouped=True)
    how = dict(stride=stride, padding=padding, output_padding=output_padding, groups=groups, dilation=dilation)
    how['most'] = weight.source.most
    return conv_transpose2d(input, factors, states, weight.dtype, weight.shape, _made(bias), **how)


_APPLIED = {F.linear: _linear, F.conv2d: _conv2d, F.conv_transpose2d: _conv_transpose2d}
_METADATA = {vars(torch._C.TensorBase)[name].__get__ for name in ('shape', 'dtype', 'device', 'ndim', 'requires_grad')}
_METADATA |= {Tensor.size, Tensor.dim, Tensor.numel, Tensor.is_floating_point}
