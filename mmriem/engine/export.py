"""ONNX models of single-stage detectors."""

from __future__ import annotations

import io
import json
import os
import traceback
import warnings
from contextlib import redirect_stderr, redirect_stdout
from importlib.util import find_spec
from inspect import Parameter, signature
from pathlib import Path
from typing import Any, cast

import torch
from mmdet.models.detectors import SingleStageDetector
from torch import Tensor, nn

from mmriem.core.errors import RiemError
from mmriem.stock import written_whole

from .guard import guarded, in_one_line
from .onnx_weights import require_form, store_weights

__all__ = ['write_onnx']

ONNX_PACKAGES = ('onnx', 'onnxscript')
IMAGE = 'image'


def write_onnx(
    model: nn.Module,
    target: str | os.PathLike,
    size: tuple[int, int],
    *,
    opset: int = 18,
    weights: str = 'fp32',
    force: bool = False,
) -> list[str]:
    """Write backbone, neck and head of a single-stage detector; returns the names of the outputs.

    The input `image` is a normalised batch `(1, 3, height, width)` float32, the outputs are what the head returns for
    each level, before boxes are decoded and suppressed. The normalisation and the class names are in the file's
    metadata (`mean`, `std`, `bgr_to_rgb`, `classes`).

    Args:
        model: a detector in eval mode on the CPU.
        target: the file to write.
        size: height and width of the input in pixels.
        opset: version of ONNX's operators.
        weights: how they are stored, see `onnx_weights`.
        force: replace an existing file.

    Raises:
        RiemError: the packages of the extra `onnx` are not installed, the detector is of another kind, or `target`
            exists and `force` is not given.
    """
    require_form(weights)
    absent = [name for name in ONNX_PACKAGES if find_spec(name) is None]
    if absent:
        raise RiemError(f'{target}: ONNX needs {" and ".join(absent)}, found none; run pip install onnx onnxscript')
    _require_exportable(model, target)
    import onnx

    raw = RawOutputs(model)
    raw.eval()
    example = torch.zeros(1, _channels(model), *size)
    with guarded(raw, f'run on an image of {size[0]} x {size[1]}', remedy='give its size with --size'):
        names = raw.names(example)
    with written_whole(target, force) as fresh:
        program = _traced(raw, example, names, opset, target)
        graph = program.model_proto
        store_weights(graph, weights)
        onnx.helper.set_model_props(graph, _metadata(model))
        onnx.checker.check_model(graph)
        onnx.save(graph, fresh)
    return names


def _require_exportable(model: nn.Module, target: str | os.PathLike) -> None:
    """Raise what is wrong with a detector whose backbone, neck and head are not a function of tensors alone."""
    head = getattr(model, 'bbox_head', None)
    if not isinstance(model, SingleStageDetector) or head is None:
        raise RiemError(
            f'{target}: expected a single-stage detector, whose raw outputs are tensors, found '
            f'{type(model).__name__}; export a .pth checkpoint and deploy that'
        )
    takes = [name for name, what in signature(head.forward).parameters.items() if what.default is Parameter.empty]
    if len([name for name in takes if name not in ('args', 'kwargs')]) != 1:
        raise RiemError(
            f'{target}: expected a head that takes the features alone, found {type(head).__name__}, which takes '
            f'{", ".join(takes)}; export a .pth checkpoint and deploy that'
        )


def _traced(
    raw: RawOutputs, example: Tensor, names: list[str], opset: int, target: str | os.PathLike
) -> torch.onnx.ONNXProgram:
    """The program of ONNX's operators.

    Raises:
        RiemError: names what has none.
    """
    said = io.StringIO()  # torch's exporter prints a page on what fails
    try:
        with torch.no_grad(), warnings.catch_warnings(), redirect_stdout(said), redirect_stderr(said):
            warnings.simplefilter('ignore')  # of operators that torch itself is to rename
            program = torch.onnx.export(
                raw,
                (example,),
                input_names=[IMAGE],
                output_names=names,
                opset_version=opset,
                dynamo=True,
                verbose=False,
            )
            return cast(torch.onnx.ONNXProgram, program)  # as with dynamo
    except Exception as error:  # the exporter fails in many ways
        raise RiemError(
            f'{target}: expected a detector of operators that ONNX has, found {_without_operator(error)}; export a '
            '.pth checkpoint and deploy that'
        ) from error


def _without_operator(error: BaseException) -> str:
    """What in a failed export has no operator: one of mmcv's, or what the first of the errors says."""
    while error.__cause__ is not None:
        error = error.__cause__
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        place = Path(frame.filename)
        if place.parent.name == 'ops' and place.parent.parent.name == 'mmcv':
            return f'{place.stem} of mmcv'
    return in_one_line(error)


def _channels(model: nn.Module) -> int:
    mean = getattr(model.data_preprocessor, 'mean', None)
    return 3 if mean is None else mean.numel()


class RawOutputs(nn.Module):
    """Backbone, neck and head of a single-stage detector as a function from an image to a flat tuple of tensors."""

    def __init__(self, model: SingleStageDetector) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """What the head returns: all levels of its first kind of output, then of the second."""
        return tuple(tensor for _, tensor in self._named(image))

    @torch.no_grad()
    def names(self, image: Tensor) -> list[str]:
        """Names of the outputs: `output_KIND_LEVEL`, and `output_KIND_LEVEL_PART` where a level has parts; from 0."""
        return [name for name, _ in self._named(image)]

    def _named(self, image: Tensor) -> list[tuple[str, Tensor]]:
        kinds = self.model.bbox_head(self.model.extract_feat(image))
        kinds = [kinds] if isinstance(kinds, Tensor) else kinds
        levels = [[kind] if isinstance(kind, Tensor) else kind for kind in kinds]  # features of masks are one
        return [found for number, level in enumerate(levels) for found in _flat(f'output_{number}', level)]


def _flat(name: str, value: Any) -> list[tuple[str, Tensor]]:
    """All tensors of nested lists and tuples, each with its place; what a head leaves out has none."""
    if isinstance(value, Tensor):
        return [(name, value)]
    return [found for place, part in enumerate(value or ()) for found in _flat(f'{name}_{place}', part)]


def _metadata(model: nn.Module) -> dict[str, str]:
    processor = model.data_preprocessor
    told: dict[str, Any] = {'bgr_to_rgb': bool(getattr(processor, '_channel_conversion', False))}
    for key in ('mean', 'std'):
        value = getattr(processor, key, None)
        told[key] = None if value is None else value.flatten().tolist()
    told['classes'] = list(getattr(model, 'dataset_meta', {}).get('classes', ()))
    return {key: json.dumps(value) for key, value in told.items()}
