"""Weights of ONNX models in fewer bits: stored as int8 or fp16, and made float32 again by operators of the graph."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np

from mmriem.core.errors import RiemError

__all__ = ['FORMS', 'require_form', 'store_weights']

FORMS = ('fp32', 'fp16', 'int8')
"""Of stored weights."""
LEAST_OPSET = 13
"""Version of the operators that has DequantizeLinear with an axis."""
LEAST = 64
"""Elements of a weight; smaller ones stay float32."""
LEVELS = 127
"""Of int8, on either side of zero."""


def require_form(form: str) -> None:
    """Raise a RiemError where there is no such form."""
    if form not in FORMS:
        raise RiemError(f'--weights {form}: expected one of {", ".join(FORMS)}')


def store_weights(graph: Any, form: str) -> int:
    """Store the weights of a model in that form; returns how many. Biases and norms stay float32.

    int8 has one scale for each output channel: ``DequantizeLinear`` multiplies by it. fp16 goes through ``Cast``. Any
    runtime with these operators runs the model, and computes in float32.

    Args:
        graph: a ``ModelProto`` with its weights as initializers; it is changed.
        form: one of ``FORMS``.

    Raises:
        RiemError: there is no such form, the version of the operators is too old, or a weight does not fit fp16.
    """
    require_form(form)
    if form == 'fp32':
        return 0
    opset = next(each.version for each in graph.opset_import if each.domain in ('', 'ai.onnx'))
    if form == 'int8' and opset < LEAST_OPSET:
        raise RiemError(f'--weights int8: expected --opset {LEAST_OPSET} or above, found {opset}')
    axes = _output_axes(graph.graph)
    kept, nodes, count = [], [], 0
    for tensor in graph.graph.initializer:
        axis = axes.get(tensor.name)
        if axis is None or not _is_weight(tensor):
            kept.append(tensor)
            continue
        stored, node = _as_int8(tensor, axis) if form == 'int8' else _as_fp16(tensor)
        kept += stored
        nodes.append(node)
        count += 1
    others = list(graph.graph.node)
    del graph.graph.initializer[:], graph.graph.node[:]
    graph.graph.initializer.extend(kept)
    graph.graph.node.extend([*nodes, *others])
    return count


def _output_axes(graph: Any) -> dict[str, int]:
    """The axis of the output channels of each weight, by its name; those that are used in two ways are left out."""
    axes: dict[str, set[int | None]] = defaultdict(set)
    for node in graph.node:
        for place, name in enumerate(node.input):
            axes[name].add(_output_axis(node) if place == 1 else None)
    found = {name: next(iter(its)) for name, its in axes.items() if len(its) == 1}
    return {name: axis for name, axis in found.items() if axis is not None}


def _output_axis(node: Any) -> int | None:
    """Of the second input of a node."""
    if node.op_type == 'Gemm':
        return 0 if any(each.name == 'transB' and each.i for each in node.attribute) else 1
    return {'Conv': 0, 'ConvTranspose': 1, 'MatMul': 1}.get(node.op_type)


def _is_weight(tensor: Any) -> bool:
    from onnx import TensorProto

    return tensor.data_type == TensorProto.FLOAT and len(tensor.dims) >= 2 and int(np.prod(tensor.dims)) >= LEAST


def _as_int8(tensor: Any, axis: int) -> tuple[list[Any], Any]:
    from onnx import helper, numpy_helper

    values = numpy_helper.to_array(tensor)
    others = tuple(at for at in range(values.ndim) if at != axis)
    scale = np.abs(values).max(others).astype(np.float32) / np.float32(LEVELS)
    scale[scale == 0] = 1
    shape = [-1 if at == axis else 1 for at in range(values.ndim)]
    codes = np.clip(np.rint(values / scale.reshape(shape)), -LEVELS, LEVELS).astype(np.int8)
    stored = [
        numpy_helper.from_array(codes, f'{tensor.name}_int8'),
        numpy_helper.from_array(scale, f'{tensor.name}_scale'),
    ]
    names = [each.name for each in stored]
    return stored, helper.make_node('DequantizeLinear', names, [tensor.name], axis=axis)


def _as_fp16(tensor: Any) -> tuple[list[Any], Any]:
    from onnx import TensorProto, helper, numpy_helper

    with np.errstate(over='ignore'):
        values = numpy_helper.to_array(tensor).astype(np.float16)
    if not np.isfinite(values).all():
        raise RiemError(f'--weights fp16: expected weights within its range, found larger ones in {tensor.name}')
    stored = numpy_helper.from_array(values, f'{tensor.name}_fp16')
    return [stored], helper.make_node('Cast', [stored.name], [tensor.name], to=TensorProto.FLOAT)
