"""What a fit is given: a finite weight matrix, a metric and output weights of its sizes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Union

from torch import Tensor

from ..errors import RiemError

MetricBlocks = Union[Tensor, Sequence[Tensor]]
"""The input metric ``A``: ``(in, in)``, or ``(groups, in, in)`` for consecutive rows, or such blocks over consecutive
columns."""


def check_weight(weight: Tensor, input_metric: Tensor | None, output_weights: Tensor | None) -> None:
    """Raise :class:`RiemError` unless the arguments of ``fit`` have the shapes and values they must have."""
    if weight.ndim != 2 or 0 in weight.shape:
        raise RiemError(f'a weight matrix has two non-empty dimensions, found shape {tuple(weight.shape)}')
    if not weight.isfinite().all():
        raise RiemError('the weight matrix holds NaN or infinite values; repair the checkpoint first')
    out, inputs = weight.shape
    if input_metric is not None and tuple(input_metric.shape) != (inputs, inputs):
        raise RiemError(f'the input metric has shape {tuple(input_metric.shape)}, expected {(inputs, inputs)}')
    if output_weights is not None and tuple(output_weights.shape) != (out,):
        raise RiemError(f'the output weights have shape {tuple(output_weights.shape)}, expected {(out,)}')
    if input_metric is not None and not (input_metric.isfinite().all() and (input_metric.diagonal() >= 0).all()):
        raise RiemError('the input metric: expected finite values and a non-negative diagonal, found others')
    if output_weights is not None and not (output_weights.isfinite() & (output_weights >= 0)).all():
        raise RiemError('the output weights: expected finite non-negative values, found others')


def checked_blocks(weight: Tensor, metric: MetricBlocks | None, output_weights: Tensor | None) -> list[Tensor]:
    """The metric as blocks ``(groups, b, b)`` over consecutive columns, none where it is the identity.

    Raises:
        RiemError: a weight that is not a finite matrix, a metric or output weights of other sizes or not finite.
    """
    check_weight(weight, None, output_weights)
    out, columns = weight.shape
    blocks = [] if metric is None else [metric] if isinstance(metric, Tensor) else list(metric)
    blocks = [block[None] if block.ndim == 2 else block for block in blocks]
    sizes = [tuple(block.shape) for block in blocks]
    square = all(len(size) == 3 and size[1] == size[2] and size[0] == sizes[0][0] for size in sizes)
    if blocks and not (square and sum(size[1] for size in sizes) == columns and out % sizes[0][0] == 0):
        raise RiemError(f'the input metric has shape {sizes}, expected square blocks over {columns} columns')
    if any(not (block.isfinite().all() and (block.diagonal(dim1=1, dim2=2) >= 0).all()) for block in blocks):
        raise RiemError('the input metric: expected finite values and a non-negative diagonal, found others')
    return blocks
