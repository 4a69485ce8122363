"""Tensors that are regenerated from a recipe instead of stored: index tables, constants.

A new recipe is one entry of ``RECIPES``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import RiemError, brief
from .dense import DTYPES

MAX_ELEMENTS = 2**24  # of a derived tensor: a hostile file of a few bytes must not fill the memory


@dataclass(frozen=True)
class DerivedRecord:
    """A tensor that a recipe regenerates bit for bit.

    Attributes:
        name: state-dict key.
        shape: shape of the tensor.
        dtype: name of its dtype, a key of ``dense.DTYPES``.
        recipe: key of ``RECIPES``.
        params: what the recipe needs beside shape and dtype, JSON numbers or booleans.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    recipe: str
    params: tuple[int | float | bool, ...]

    def decode(self) -> Tensor:
        """The tensor, in memory of its own.

        Raises:
            RiemError: unknown recipe, parameters that it does not take, or more than ``MAX_ELEMENTS``
                elements.
        """
        if self.recipe not in RECIPES:
            raise RiemError(
                f'tensor {self.name!r}: expected a recipe among {tuple(RECIPES)}, found {brief(self.recipe)}'
            )
        if math.prod(self.shape) > MAX_ELEMENTS:
            raise RiemError(
                f'tensor {self.name!r}: expected at most {MAX_ELEMENTS} derived elements, found shape {self.shape}'
            )
        tensor = RECIPES[self.recipe].build(self.shape, DTYPES[self.dtype], self.params)
        if tensor is None:
            raise RiemError(
                f'tensor {self.name!r}: recipe {self.recipe!r} gives no {self.dtype} tensor of shape '
                f'{self.shape} from the parameters {brief(self.params)}'
            )
        return tensor


@dataclass(frozen=True)
class Recipe:
    """How a kind of tensor is recognised and rebuilt.

    Attributes:
        recognise: parameters with which ``build`` may give this tensor, None where it cannot.
        build: the tensor of a shape, dtype and parameters; None where these do not go together. It is called
            with parameters from a file, so it checks them.
    """

    recognise: Callable[[Tensor], tuple | None]
    build: Callable[[tuple[int, ...], torch.dtype, tuple], Tensor | None]


def derive(name: str, tensor: Tensor) -> DerivedRecord | None:
    """The record of a tensor that a recipe regenerates bit for bit, None where no recipe does.

    >>> derive('bn.num_batches_tracked', torch.tensor(7)).params
    (7,)
    """
    dtype = str(tensor.dtype).removeprefix('torch.')
    if dtype not in DTYPES or tensor.numel() > MAX_ELEMENTS:
        return None
    tensor = tensor.detach().cpu()
    for recipe, entry in RECIPES.items():
        params = entry.recognise(tensor)
        if params is not None:
            built = entry.build(tuple(tensor.shape), tensor.dtype, params)
            if built is not None and _same_bits(built, tensor):
                return DerivedRecord(name, tuple(tensor.shape), dtype, recipe, params)
    return None


def _same_bits(left: Tensor, right: Tensor) -> bool:
    if left.shape != right.shape or left.dtype != right.dtype:
        return False
    flat = (side.contiguous().reshape(-1).view(torch.uint8) for side in (left, right))
    return torch.equal(*flat)


def _recognise_constant(tensor: Tensor) -> tuple | None:
    # one float is cheaper as fp16 than as decimal digits
    if tensor.numel() < (2 if tensor.is_floating_point() else 1) or tensor.is_complex():
        return None
    value = tensor.reshape(-1)[0].item()
    return (value,) if math.isfinite(value) and bool((tensor == value).all()) else None


def _build_constant(shape: tuple[int, ...], dtype: torch.dtype, params: tuple) -> Tensor | None:
    if len(params) != 1 or dtype.is_complex or not _holds(dtype, params[0]):
        return None
    return torch.full(shape, params[0], dtype=dtype)


def _holds(dtype: torch.dtype, value: object) -> bool:
    """Whether ``value`` has the dtype's kind and survives a round trip through it."""
    if dtype == torch.bool or isinstance(value, bool):
        return dtype == torch.bool and isinstance(value, bool)
    if dtype.is_floating_point:
        return isinstance(value, float) and torch.tensor(value, dtype=torch.float64).to(dtype).item() == value
    return not dtype.is_complex and isinstance(value, int) and torch.iinfo(dtype).min <= value <= torch.iinfo(dtype).max


def _recognise_window(tensor: Tensor) -> tuple | None:
    if tensor.dim() != 2 or tensor.is_floating_point() or tensor.is_complex() or tensor.numel() == 0:
        return None
    tokens = tensor.shape[0]
    # along the first row the column offset falls by one per token, except where a new window row begins
    breaks = (tensor[0].long().diff() != -1).nonzero()
    width = int(breaks[0, 0]) + 1 if len(breaks) else tokens
    return tokens // width, width


def _build_window(shape: tuple[int, ...], dtype: torch.dtype, params: tuple) -> Tensor | None:
    """The index of each pair of tokens into Swin's ``((2h - 1)(2w - 1), heads)`` table of relative positions.

    Liu et al., Swin Transformer (ICCV 2021), section 3.2. For tokens at ``(y, x)`` and ``(v, u)`` of a window
    ``(h, w)``: ``(y - v + h - 1) (2w - 1) + (x - u + w - 1)``, the same in the original code and in mmdet.
    """
    if len(params) != 2 or any(type(size) is not int or size < 1 for size in params):
        return None
    height, width = params
    if shape != (height * width,) * 2 or not _holds(dtype, (2 * height - 1) * (2 * width - 1) - 1):
        return None
    token = torch.arange(height * width)
    y, x = token // width, token % width
    rows = y[:, None] - y[None, :] + height - 1  # (tokens, tokens)
    columns = x[:, None] - x[None, :] + width - 1
    return (rows * (2 * width - 1) + columns).to(dtype)


RECIPES: dict[str, Recipe] = {
    'relative_position_index': Recipe(_recognise_window, _build_window),
    'constant': Recipe(_recognise_constant, _build_constant),
}
