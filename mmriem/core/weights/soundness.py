"""What a network must hold to be compressed: finite parameters, and statistics of norms that are some."""

from __future__ import annotations

from torch import Tensor, nn

from ..errors import RiemError
from .values import require_values

STATISTICS = ('running_mean', 'running_var')
"""Buffers of norms. Others may be infinite: masks of attention are."""


def require_sound(model: nn.Module) -> None:
    """See that every parameter and every statistic of a norm has a meaning.

    Raises:
        RiemError: names the first tensor without values, with NaN or infinite ones, or the first negative variance.
    """
    require_values(model)
    for name, tensor in model.named_parameters():
        _require_finite(name, tensor)
    for name, buffer in model.named_buffers():
        kind = name.rpartition('.')[2]
        if kind in STATISTICS:
            _require_finite(name, buffer)
            if kind == 'running_var' and bool((buffer < 0).any()):
                raise RiemError(
                    f'{name}: expected variances of at least 0, found {float(buffer.min()):.3g}; '
                    'repair the checkpoint first'
                )


def _require_finite(name: str, tensor: Tensor) -> None:
    finite = tensor.isfinite()
    if not bool(finite.all()):
        count = tensor.numel() - int(finite.sum())
        raise RiemError(
            f'{name}: expected finite values, found {count:,} of {tensor.numel():,} NaN or infinite; '
            'repair the checkpoint first'
        )
