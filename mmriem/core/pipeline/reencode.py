"""Weights written in representations that are there already, as training leaves them: no budget, no fit."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from torch import nn

from ..file.manifest import Source
from ..representations.base import Codec
from ..weights.soundness import require_sound
from ..weights.views import every_weight
from .archiving import Frame
from .compress import Compressed
from .encoded_weight import EncodedWeight, average_bits
from .report import archive_report
from .settings import Selection


def reencode(
    model: nn.Module, kept: Mapping[str, Codec], *, dataset_meta: Mapping[str, Any], source: Source
) -> Compressed:
    """Write weights in the representations that are given; everything else stays dense or is derived.

    Args:
        model: any module.
        kept: representations by the state-dict key of their weight.
        dataset_meta, source: for the file.
    """
    started = time.perf_counter()
    require_sound(model)
    state_dict = {key: tensor.detach().cpu() for key, tensor in model.state_dict().items()}
    views = tuple(view for view in every_weight(model) if view.name in kept)
    frame = Frame(model, views, Selection(), dict(dataset_meta), source, {'states': 'as trained'})
    weights = {
        view.name: EncodedWeight.whole(view, state_dict[view.name], kept[view.name], None, 0.0) for view in views
    }
    archive = frame.archive(weights, state_dict, average_bits(weights, views, state_dict))
    report = archive_report(archive, model, views, weights)
    for entry in report['weights']:
        entry.update(metric='identity', seconds=0.0)
    report['totals'].update(predicted_error=None, tuning=None, stages={})
    report['totals']['wall_seconds'] = time.perf_counter() - started
    return Compressed(archive, report)
