"""What a tensor must be for its values to be read: dense, with values, of no quantised type."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from ..errors import RiemError


def unreadable(tensor: Tensor) -> str | None:
    """What is wrong with a tensor whose values cannot be read; None with any other."""
    if isinstance(tensor, (UninitializedParameter, UninitializedBuffer)):
        return 'one of a lazy module that has no shape yet; run it once'
    if tensor.device.type == 'meta':
        return 'one without values, on the device meta; load its values'
    if tensor.is_quantized:
        return 'a quantised one; take it from before the quantisation'
    if tensor.layout != torch.strided:
        return 'a sparse one; make it dense'
    return None


def require_values(model: nn.Module) -> None:
    """Raise what is wrong with the first tensor of a model whose values cannot be read.

    Raises:
        RiemError: names it.
    """
    for name, tensor in model.state_dict(keep_vars=True).items():
        if isinstance(tensor, Tensor) and (wrong := unreadable(tensor)):
            raise RiemError(f'{name}: expected a dense tensor, found {wrong}')
