"""ONNX models of single-stage detectors."""

from __future__ import annotations

import json
import os
import warnings
from importlib.util import find_spec
from typing import Any

import torch
from mmdet.models.detectors import SingleStageDetector
from torch import Tensor, nn

from mmriem.core.errors import RiemError
from mmriem.stock import written_whole

__all__ = ['write_onnx']

ONNX_PACKAGES = ('onnx', 'onnxscript')
IMAGE = 'image'


def write_onnx(
    model: nn.Module, target: str | os.PathLike, size: tuple[int, int], *, opset: int = 18, force: bool = False
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
        force: replace an existing file.

    Raises:
        RiemError: the packages of the extra `onnx` are not installed, the detector is of another kind, or `target`
            exists and `force` is not given.
    """
    absent = [name for name in ONNX_PACKAGES if find_spec(name) is None]
    if absent:
        raise RiemError(f'{target}: ONNX needs {" and ".join(absent)}, found none; run pip install "mmriem[onnx]"')
    if not isinstance(model, SingleStageDetector):
        raise RiemError(
            f'{target}: expected a single-stage detector, whose raw outputs are tensors, found '
            f'{type(model).__name__}; export a .pth checkpoint and deploy that'
        )
    import onnx

    raw = RawOutputs(model).eval()
    example = torch.zeros(1, 3, *size)
    names = raw.names(example)
    with written_whole(target, force) as fresh:
        with torch.no_grad(), warnings.catch_warnings():
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
        graph = program.model_proto
        onnx.helper.set_model_props(graph, _metadata(model))
        onnx.checker.check_model(graph)
        onnx.save(graph, str(fresh))
    return names


class RawOutputs(nn.Module):
    """Backbone, neck and head of a single-stage detector as a function from an image to a flat tuple of tensors."""

    def __init__(self, model: SingleStageDetector) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """What the head returns: all levels of its first kind of output, then of the second."""
        return tuple(level for kind in self._kinds(image) for level in kind)

    @torch.no_grad()
    def names(self, image: Tensor) -> list[str]:
        """Names of the outputs: `output_KIND_LEVEL`, both counted from 0."""
        kinds = self._kinds(image)
        return [f'output_{k}_{level}' for k, kind in enumerate(kinds) for level in range(len(kind))]

    def _kinds(self, image: Tensor) -> list[list[Tensor]]:
        return [list(kind) for kind in self.model.bbox_head(self.model.extract_feat(image))]


def _metadata(model: nn.Module) -> dict[str, str]:
    processor = model.data_preprocessor
    told: dict[str, Any] = {'bgr_to_rgb': bool(getattr(processor, '_channel_conversion', False))}
    for key in ('mean', 'std'):
        value = getattr(processor, key, None)
        told[key] = None if value is None else value.flatten().tolist()
    told['classes'] = list(getattr(model, 'dataset_meta', {}).get('classes', ()))
    return {key: json.dumps(value) for key, value in told.items()}
