"""Compression of any module from Python, without config or checkpoint file: torch only, nothing of mm*."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from .core.errors import RiemError
from .core.execution.executor import Executor
from .core.file import reading, writing
from .core.file.manifest import Source
from .core.images.probe import ImageProbe, Probe
from .core.images.synthesis import synthesis_share
from .core.live.compressed import MEMORY, load_compressed
from .core.live.decoded import CACHE
from .core.pipeline import compress as pipeline
from .core.pipeline.compress import Compressed
from .core.pipeline.progress import OnProgress
from .core.pipeline.settings import Settings
from .core.weights.soundness import require_sound
from .image_probe import InputFormat, made_probe, require_run

__all__ = ['compress', 'load', 'save']


def compress(
    model: nn.Module,
    *,
    input_size: Sequence[int] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    inputs: Tensor | None = None,
    metric: str = 'pullback',
    synthesis: int | None = None,
    device: str | torch.device = 'cpu',
    threads: int | None = None,
    dataset_meta: Mapping[str, Any] | None = None,
    on_progress: OnProgress | None = None,
    **settings: Any,
) -> Compressed:
    """Compress a trained network without data: any module that maps one tensor to tensors.

    The network runs on procedural images, which tells how much each weight matters, and how norms and biases have to
    be recalibrated; where its norms hold statistics, the images are optimised for these first. What comes back has
    `archive`, for :func:`save`, and `report`, a dict with `weights` and `totals`.

    Args:
        model: the network; it is not changed.
        input_size: of an image, `(3, 224, 224)` for instance: channels (1 or 3), height, width. A model of timm tells
            its own.
        mean: of the normalisation for each channel, for values between 0 and 1. Where it is not given it is what a
            model of timm tells, else ImageNet's, and for one channel the mean of those.
        std: likewise.
        inputs: what the network is to run on in place of procedural images, `(n, ...)`, normalised.
        metric: `pullback`, or `identity`: the network does not run, each error counts alike, norms and biases stay.
        synthesis: steps that procedural images are optimised by until norms see what they saw in training; 0: none,
            which is quicker. None: as many as take minutes at most, none for networks without norms with statistics.
        device: where the work runs.
        threads: pieces of work at a time; all cores where it is not given.
        dataset_meta: what the file is to say of the data, such as `{'classes': [...]}`.
        on_progress: called with the share of the work done, 0 to 1, and what it concerns.
        settings: `bits`, `ratio`, `size` or `tolerance`, `representation`, `include`, `exclude` and so on, see
            :class:`mmriem.core.pipeline.settings.Settings`.

    Raises:
        RiemError: what is given is no network, it does not run on such inputs, there is nothing to compress, a setting
            does not fit, or the device is not there.

    >>> net = nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 32, 3))
    >>> compress(net, bits=6.0, input_size=(3, 8, 8)).report['totals']['bits_per_weight'] <= 6
    True
    """
    _require_module('compress', model)
    require_sound(model)
    chosen = Settings.of(**settings)
    if reason := unavailable(device):
        raise RiemError(f"device: {str(device)!r} is not available here ({reason}); give device='cpu'")
    if threads is not None and not (isinstance(threads, int) and threads >= 1):
        raise RiemError(f'threads: expected a number of at least 1, or None for all cores, found {threads!r}')
    threads = threads or os.cpu_count() or 1
    say = on_progress or (lambda share, name: None)
    told = (synthesis, chosen.fit.seed, Executor(threads), device, say)
    probe = _probe(model, input_size, mean, std, inputs, metric, *told)
    share = synthesis_share(probe.describe().get('steps', 0)) if probe is not None else 0.0
    compressed = pipeline.compress(
        model,
        chosen,
        dataset_meta=dict(dataset_meta or {}),
        source=Source(type(model).__name__, _digest(model)),
        probe=probe,
        device=str(device),
        threads=threads,
        on_progress=lambda done, name: say(share + (1 - share) * done, name),
    )
    return cast(Compressed, compressed)  # this process is the only one, so the first


def save(compressed: Compressed, path: str | os.PathLike, *, force: bool = False) -> int:
    """Write a `.riem` file, whole or not at all; returns its bytes.

    Args:
        compressed: what :func:`compress` gave.
        path: the file.
        force: replace an existing file.

    Raises:
        RiemError: the file exists and `force` is not given, or it cannot be written.
    """
    if not isinstance(compressed, Compressed):
        raise RiemError(
            f'save: expected what mmriem.compress gives, found {_kind(compressed)}; compress the network first'
        )
    _require_path('save', path)
    if not os.fspath(path).endswith('.riem'):
        raise RiemError(f'{path}: expected a name that ends in .riem, found another; add it')
    return writing.write(path, compressed.archive, force=force)


def load(model: nn.Module, path: str | os.PathLike, *, memory: str = 'dense', cache: str | int = CACHE) -> nn.Module:
    """Fill a network of the same architecture with the weights of a `.riem` file; returns it.

    Args:
        model: the network, with any weights.
        path: the file, which is checked whole before the model is changed.
        memory: `dense`, or `compressed`: weights stay as they are in the file, and are decoded in bands as they are
            applied. Such a network runs, in eval mode, and is not trained.
        cache: with `compressed`, the most that decoded weights may take while the network runs, such as `'32MB'`.

    Raises:
        RiemError: the file is missing or damaged, or is of another network; or the network holds states or compressed
            weights already where it is to hold them compressed.
    """
    _require_module('load', model)
    _require_path('load', path)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if memory not in MEMORY:
        raise RiemError(f'memory: expected one of {", ".join(MEMORY)}, found {memory!r}')
    archive = reading.read(path, shapes, parse=memory == 'dense')
    model.load_state_dict(archive.decode() if memory == 'dense' else load_compressed(model, archive, cache))
    return model


def unavailable(device: str | torch.device) -> str:
    """Why there is no such device here; empty where there is."""
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, TypeError) as error:
        return str(error).strip().partition('\n')[0] or type(error).__name__
    return ''


def _require_module(call: str, model: Any) -> None:
    if isinstance(model, nn.Module):
        return
    remedy = 'give the network'
    if isinstance(model, Mapping):
        remedy = 'build the network that these tensors are of, model.load_state_dict(...), and give that'
    raise RiemError(f'{call}: expected a torch.nn.Module as model, found {_kind(model)}; {remedy}')


def _require_path(call: str, path: Any) -> None:
    if not isinstance(path, (str, os.PathLike)):
        raise RiemError(
            f'{call}: expected the path of a .riem file, found {_kind(path)}; give a text or a pathlib.Path'
        )


def _kind(value: Any) -> str:
    """What a value is, for a message."""
    if isinstance(value, Mapping):
        return f'{type(value).__name__} of {len(value)} entries'
    return repr(value) if isinstance(value, (str, int, float)) or value is None else type(value).__name__


def _probe(
    model: nn.Module,
    input_size: Sequence[int] | None,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    inputs: Tensor | None,
    metric: str,
    synthesis: int | None,
    seed: int,
    executor: Executor,
    device: str | torch.device,
    on_progress: OnProgress,
) -> Probe | None:
    given = [name for name, value in (('input_size', input_size), ('inputs', inputs)) if value is not None]
    if synthesis and (metric == 'identity' or inputs is not None):
        raise RiemError(f'synthesis {synthesis}: expected procedural images, found none; leave it out')
    if metric == 'identity':
        if given:
            raise RiemError(f"{given[0]}: expected with metric='pullback', found metric='identity'; give one of them")
        return None
    if metric != 'pullback':
        raise RiemError(f"metric: expected 'pullback' or 'identity', found {metric!r}")
    if len(given) == 2:
        raise RiemError('compress: expected input_size or inputs, found both; give one')
    if inputs is not None:
        if not isinstance(inputs, Tensor):
            raise RiemError(f'inputs: expected a tensor (n, ...), found {_kind(inputs)}; give torch.as_tensor(...)')
        if not inputs.isfinite().all():
            raise RiemError('inputs: expected finite values, found NaN or infinite ones; leave them out')
        probe = ImageProbe(inputs)
    else:
        wanted: dict[str, Any] = {'input_size': input_size, 'mean': mean, 'std': std}
        told = getattr(model, 'pretrained_cfg', None) or {}  # of timm
        taken = InputFormat.told(*(told.get(name) if value is None else value for name, value in wanted.items()))
        return made_probe(model, taken, synthesis, seed, executor, device, on_progress)
    require_run(model, probe)
    return probe


def _digest(model: nn.Module) -> str:
    """SHA-256 over the names and values of the state dict, in place of that of a checkpoint file."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
