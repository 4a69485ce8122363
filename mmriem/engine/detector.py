"""Detectors and other models of MMEngine from a config and a checkpoint, in one call."""

from __future__ import annotations

import os
from copy import deepcopy
from typing import Any

from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import DATASETS, MODELS, init_default_scope
from torch import nn

from .checkpoint import load_into, read_checkpoint
from .scheme import load_from_riem

__all__ = ['build_detector', 'dataset_meta', 'init_detector']


def build_detector(config: Config) -> nn.Module:
    """The model of a config on the CPU, with fresh weights; nothing is downloaded or read.

    That is a detector of mmdet, or whatever else the `default_scope` of the config has: a classifier, say.
    SyncBatchNorm becomes BatchNorm, which has the same state and runs on one device.
    """
    init_default_scope(config.get('default_scope', 'mmdet'))
    settings = deepcopy(config.model)  # some detectors of mmdet change them
    return revert_sync_batchnorm(MODELS.build(settings))


def init_detector(
    config: Config, checkpoint: str | os.PathLike, *, device: str = 'cpu', trust: bool = False
) -> nn.Module:
    """A detector that is ready for `mmdet.apis.inference_detector`, as mmdet's own `init_detector` gives it.

    It differs in that a checkpoint which does not fit is an error, and that a `.pth` file is read safely.

    Args:
        config: as read by `mmriem.engine.config.read_config`.
        checkpoint: a `.riem` or `.pth` file, or its http(s) address.
        device: where the detector goes.
        trust: see `mmriem.engine.checkpoint.read_checkpoint`.

    Raises:
        RiemError: the checkpoint cannot be read, or does not fit the config.
    """
    if os.fspath(checkpoint).endswith('.riem'):
        loaded = load_from_riem(os.fspath(checkpoint))
        state_dict, told = loaded['state_dict'], loaded['meta']['dataset_meta']
    else:
        read = read_checkpoint(checkpoint, trust=trust)
        state_dict, told = read.state_dict, read.dataset_meta
    model = build_detector(config)
    load_into(model, state_dict, checkpoint)
    model.dataset_meta = dataset_meta(config, told)
    model.cfg = config
    return model.to(device).eval()


def dataset_meta(config: Config, told: dict[str, Any]) -> dict[str, Any]:
    """Classes as the checkpoint tells them (`told`), colours as the config does, each else from the other."""
    dataset = (config.get('test_dataloader') or {}).get('dataset')
    known = DATASETS.build({**dataset, 'lazy_init': True}).metainfo if dataset else {}
    colours = known.get('palette') or told.get('palette') or 'random'
    return {**known, **told, 'palette': colours}
