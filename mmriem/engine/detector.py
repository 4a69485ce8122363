"""Detectors and other models of MMEngine from a config and a checkpoint, in one call."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from copy import deepcopy
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import DATASETS, MODELS, init_default_scope
from torch import Tensor, nn

from mmriem.core.errors import RiemError
from mmriem.core.file import reading
from mmriem.core.live.blank import BlankParameters
from mmriem.core.live.compressed import MEMORY, load_compressed
from mmriem.core.live.convert import make_dense
from mmriem.core.live.decoded import CACHE
from mmriem.stock import with_tuples

from .checkpoint import load_into, read_checkpoint
from .config import read_config, registered, scope_of
from .guard import in_one_line
from .pipeline import inner_test_set
from .remote import local_path
from .scheme import load_from_riem

__all__ = ['build_detector', 'dataset_meta', 'init_detector', 'metainfo_of', 'with_teachers']

STOCK = 'configs/'
"""What paths of mmdet's own configs begin with."""


def build_detector(config: Config) -> nn.Module:
    """The model of a config on the CPU, with fresh weights; nothing is downloaded or read.

    That is a detector of mmdet, or whatever else the `default_scope` of the config has: a classifier, say.
    SyncBatchNorm becomes BatchNorm, which has the same state and runs on one device.

    Raises:
        RiemError: there is no model, a class is not registered or lacks an argument, or a package is missing.
    """
    init_default_scope(scope_of(config))
    try:
        settings = deepcopy(with_teachers(config).model)  # some detectors of mmdet change them
        return revert_sync_batchnorm(MODELS.build(settings))
    except RiemError:
        raise
    except Exception as error:  # models are anybody's code
        raise RiemError(
            f'{config.filename or "config"}: expected a model that can be built, found {in_one_line(error)}; mend the '
            'config, install what is missing, or name the module of your classes in custom_imports'
        ) from error


def with_teachers(config: Config) -> Config:
    """A config whose model takes no checkpoint of a teacher, and has the teacher's config in itself.

    The teacher is for training alone: a detector holds it beside its own weights, and would download its checkpoint.

    Raises:
        RiemError: there is no config of that name.
    """
    model = config.get('model')
    if not isinstance(model, dict) or not {'teacher_config', 'teacher_ckpt'} & set(model):
        return config
    config = deepcopy(config)
    config.model.teacher_ckpt = None
    teacher = config.model.get('teacher_config')
    if isinstance(teacher, (str, os.PathLike)):
        name = os.fspath(teacher)
        if not os.path.isfile(name) and name.startswith(STOCK):  # of a checkout of mmdet
            name = f'mmdet::{name.removeprefix(STOCK)}'
        config.model.teacher_config = {'model': read_config(name).model.to_dict()}
    return config


def init_detector(
    config: Config,
    checkpoint: str | os.PathLike,
    *,
    device: str = 'cpu',
    trust: bool = False,
    memory: str = 'dense',
    cache: str | int = CACHE,
) -> nn.Module:
    """A detector that is ready for `mmdet.apis.inference_detector`, as mmdet's own `init_detector` gives it.

    It differs in that a checkpoint which does not fit is an error, and that a `.pth` file is read safely.

    Args:
        config: as read by `mmriem.engine.config.read_config`.
        checkpoint: a `.riem` or `.pth` file, or its http(s) address.
        device: where the detector goes.
        trust: see `mmriem.engine.checkpoint.read_checkpoint`.
        memory: `dense`, or `compressed`: weights stay in memory as they are in the `.riem` file, and are decoded in
            bands as they are applied; RieM modules of the config are ordinary ones then.
        cache: with `compressed`, the most that decoded weights may take while the detector runs, such as `'32MB'`.

    Raises:
        RiemError: the checkpoint cannot be read, does not fit the config, or is not one that can stay compressed.
    """
    if memory not in MEMORY:
        raise RiemError(f'memory: expected one of {", ".join(MEMORY)}, found {memory!r}')
    is_riem = os.fspath(checkpoint).endswith('.riem')
    if memory != 'dense':
        if not is_riem:
            raise RiemError(
                f"{checkpoint}: expected a .riem file for memory='compressed', found another name; compress it first"
            )
        archive = reading.read(local_path(os.fspath(checkpoint)), parse=False)
        with BlankParameters():
            model = build_detector(config)
        make_dense(model)
        state_dict, told = load_compressed(model, archive, cache), with_tuples(archive.dataset_meta)
        return _ready(model, state_dict, checkpoint, config, told, device)
    if is_riem:
        loaded = load_from_riem(os.fspath(checkpoint))
        state_dict, told = loaded['state_dict'], loaded['meta']['dataset_meta']
    else:
        read = read_checkpoint(checkpoint, trust=trust)
        state_dict, told = read.state_dict, read.dataset_meta
    return _ready(build_detector(config), state_dict, checkpoint, config, told, device)


def _ready(
    model: nn.Module,
    state_dict: Mapping[str, Tensor],
    checkpoint: str | os.PathLike,
    config: Config,
    told: dict[str, Any],
    device: str,
) -> nn.Module:
    load_into(model, state_dict, checkpoint)
    model.dataset_meta = dataset_meta(config, told)  # type: ignore[assignment]  # no tensor, no module
    model.cfg = config
    model.to(device)
    model.eval()  # which gives nothing back where a detector has a teacher
    return model


def dataset_meta(config: Config, told: dict[str, Any]) -> dict[str, Any]:
    """Classes as the checkpoint tells them (`told`), colours as the config does, each else from the other."""
    init_default_scope(scope_of(config))
    known = metainfo_of(inner_test_set(config))
    colours = known.get('palette') or told.get('palette') or 'random'
    return {**known, **told, 'palette': colours}


def metainfo_of(dataset: dict[str, Any]) -> dict[str, Any]:
    """What the settings of a data set and its class tell of its classes; the set is not built, so nothing is read.

    Empty where its class is not known or tells nothing.
    """
    kind = dataset.get('type')
    with suppress(Exception):  # a package that the set alone needs is missing
        kind = registered(DATASETS, kind)
    stated = {**(getattr(kind, 'METAINFO', None) or {}), **(dataset.get('metainfo') or {})}
    return {key: _listed(value) for key, value in deepcopy(stated).items()}


def _listed(value: Any) -> Any:
    """As MMEngine reads an entry: a file with a name in each line, or the value itself."""
    if isinstance(value, str) and os.path.isfile(value):
        return Path(value).read_text(encoding='utf-8').splitlines()
    return value
