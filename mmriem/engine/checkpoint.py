"""Safe reading of `.pth` checkpoints, and strict loading of a state_dict into a model."""

from __future__ import annotations

import hashlib
import os
import pickle
import re
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from mmengine.model import BaseTTAModel, is_model_wrapper
from torch import Tensor, nn

from mmriem.core.errors import RiemError, brief, out_of_memory
from mmriem.core.file.manifest import MAX_JSON_DEPTH
from mmriem.core.weights.values import unreadable

from .pickled import load_plain
from .plain_pickle import Unreadable
from .remote import local_path

__all__ = ['Checkpoint', 'device_of', 'load_into', 'read_checkpoint', 'state_dict_of', 'unpickle', 'without_prefix']

# Buffers that a constructor fills and training never changes in a way that the output depends on.
DERIVABLE = ('num_batches_tracked', 'relative_position_index')
SHOWN_KEYS = 3
SHOWN_CHARACTERS = 100
MOST_VALUES = 1_000_000
"""Most values in the description of a data set."""
CHARACTERS = 16
"""Characters of a text that count as a value."""
AVERAGES = ('ema_',)
"""Prefixes of the names of averaged weights that mmdet 2 wrote beside the others."""
MOST_FIT = 0.9
"""Share of a model's names that are there behind a prefix that is meant."""


@dataclass(frozen=True)
class Checkpoint:
    """What compression needs of a `.pth` file.

    Attributes:
        path: the local file that was read.
        sha256: of the whole file, as 64 hexadecimal digits.
        state_dict: tensors by name, on the CPU, without a `module.` prefix.
        dataset_meta: `classes`, `palette` and what else the dataset told, keys in lower case; empty where the
            file has none.
    """

    path: Path
    sha256: str
    state_dict: OrderedDict[str, Tensor]
    dataset_meta: dict[str, Any] = field(default_factory=dict)


def read_checkpoint(source: str | os.PathLike, *, trust: bool = False) -> Checkpoint:
    """Read a checkpoint of MMEngine's Runner or mmdet's model zoo, a plain state_dict, or `.safetensors`.

    Args:
        source: a path, or an http(s) address, which is downloaded into torch's cache.
        trust: unpickle without restrictions, which runs whatever code the file holds.

    Raises:
        RiemError: the file is missing, damaged, of another kind, or holds code and `trust` is not given.
    """
    path = local_path(source)
    tree = unpickle(path, trust=trust)
    state_dict = state_dict_of(tree, path)
    for name, tensor in state_dict.items():
        state_dict[name] = tensor.detach()  # some files hold nn.Parameters
    return Checkpoint(path, _sha256(path), state_dict, _dataset_meta(tree, path))


def unpickle(path: Path, *, trust: bool = False, map_location: Any = 'cpu') -> Any:
    """Everything that a checkpoint file holds: what `torch.load` gives, read safely unless `trust` is set.

    Raises:
        RiemError: as for `read_checkpoint`.
    """
    kind = _kind(path)
    try:
        with out_of_memory(str(path)):
            if kind == 'safetensors':
                return _read_safetensors(path, map_location)
            if trust:
                return torch.load(path, map_location=map_location, weights_only=False)
            return load_plain(path, map_location)
    except RiemError:
        raise
    except pickle.UnpicklingError as error:
        raise _refusal(path, error) from error
    except ImportError as error:
        raise RiemError(f'{path}: needs a module that is not installed ({_first_line(error)}); install it') from error
    except Exception as error:
        raise RiemError(_of_another_kind(path, error)) from error


def _of_another_kind(path: Path, error: Exception) -> str:
    """What a file is that torch.save has not written, as far as it tells; else it is damaged."""
    start = f'{path}: expected a checkpoint written by torch.save, found'
    if 'array of dtype' in str(error) or 'object array' in str(error):
        return f'{start} {_first_line(error)}, which is pickled; {_TRUST}'
    with suppress(Exception):  # zipfile raises anything for a damaged file
        names = zipfile.ZipFile(path).namelist()
        if any(name.endswith('constants.pkl') for name in names):
            return f'{start} a TorchScript archive; save torch.jit.load(path).state_dict() with torch.save'
        if any(
            name.endswith(('archive_format', 'archive_version', 'serialized_exported_program.json')) for name in names
        ):
            return f'{start} an archive of torch.export; save torch.export.load(path).state_dict with torch.save'
        inner = next((name for name in names if name.endswith(('.pth', '.pt', '.ckpt'))), None)
        if inner is not None:
            return f'{start} a zip archive around {_brief_name(inner)}; unpack it and give that'
        if not any(name.endswith('data.pkl') for name in names):
            some = ', '.join(map(_brief_name, names[:3])) or 'nothing'
            return f'{start} a zip archive of {some}; give the checkpoint in it'
    if 'compressed record' in str(error):
        return f'{start} {_first_line(error)}; unpack it and zip it again without compression (zip -0 -r)'
    if 'magic number' in str(error):
        return (
            f'{start} a plain pickle, as detectron2 has them; load it with pickle, make tensors of its arrays, and '
            'write them with torch.save'
        )
    return f'{start} a damaged or truncated file ({_first_line(error)}); fetch it again'


def state_dict_of(tree: Any, path: str | os.PathLike) -> OrderedDict[str, Tensor]:
    """The model's tensors in what a checkpoint file held: under `state_dict`, under `model`, or at the top.

    The `module.` prefix of a wrapped model is taken off. A whole model, which only an unprotected reader gives, is what
    its state_dict holds.

    Raises:
        RiemError: there is no mapping of names to dense tensors in these places; what is none is named.
    """
    found = tree
    for key in ('state_dict', 'model'):
        if isinstance(tree, Mapping) and isinstance(tree.get(key), (Mapping, nn.Module)):
            found = tree[key]
            break
    if isinstance(found, nn.Module):
        found = found.state_dict()
    if not isinstance(found, Mapping) or not any(isinstance(t, (Tensor, Unreadable)) for t in found.values()):
        told = [key if isinstance(key, str) else brief(key) for key in tree] if isinstance(tree, Mapping) else []
        keys = ', '.join(map(_brief_name, sorted(told)[:8])) or f'a {type(tree).__name__}'
        raise RiemError(
            f'{path}: expected tensors by name, at the top or under "state_dict" or "model", found {keys}; '
            'give a checkpoint of the whole detector'
        )
    for name, tensor in found.items():
        if wrong := _what_is_wrong(name, tensor):
            raise RiemError(f'{path}: expected dense tensors by name, found {wrong}')
    wrapped = all(name.startswith('module.') for name in found)
    tensors = OrderedDict((name[7:] if wrapped else name, tensor) for name, tensor in found.items())
    return _with_versions(tensors, _versions(getattr(found, '_metadata', {}), path))


def _with_versions(
    tensors: OrderedDict[str, Tensor], versions: Mapping[str, Mapping[str, Any]]
) -> OrderedDict[str, Tensor]:
    """The state_dict, telling of its modules as those of PyTorch do."""
    tensors._metadata = versions  # type: ignore[attr-defined]  # which PyTorch sets on an ordinary OrderedDict
    return tensors


def _versions(metadata: Any, path: str | os.PathLike) -> OrderedDict[str, dict[str, Any]]:
    """What a state_dict tells of its modules beside their tensors: versions, which mmdet's heads look at."""
    sound = isinstance(metadata, Mapping) and all(
        isinstance(name, str) and isinstance(own, Mapping) and isinstance(own.get('version', 0), (int, type(None)))
        for name, own in metadata.items()
    )
    if not sound:
        raise RiemError(
            f'{path}: expected version numbers of modules as metadata of the state_dict, found {brief(metadata)}; '
            'save the file again without _metadata'
        )
    return OrderedDict((name, dict(own)) for name, own in metadata.items())


def _what_is_wrong(name: Any, tensor: Any) -> str | None:
    """With an entry of a state_dict; None with one that is as it should be."""
    if not isinstance(name, str):
        return f'a name of type {type(name).__name__}, {brief(name)}; save the file again with texts'
    if isinstance(tensor, Unreadable):
        return f'as {_brief_name(name)!r} {tensor.wrong}'
    if not isinstance(tensor, Tensor):
        return f'as {_brief_name(name)!r} one of type {type(tensor).__name__}; save the file again without it'
    wrong = unreadable(tensor)
    return f'as {_brief_name(name)!r} {wrong}' if wrong else None


def without_prefix(state_dict: Mapping[str, Tensor], prefix: str, path: str | os.PathLike) -> OrderedDict[str, Tensor]:
    """The entries whose names begin with a prefix, without it: of a model that is a part of the checkpoint's.

    Raises:
        RiemError: no name begins with it.
    """
    found = OrderedDict((name[len(prefix) :], x) for name, x in state_dict.items() if name.startswith(prefix))
    if not found:
        raise RiemError(f'{path}: expected names that begin with {prefix!r}, found {_listed("", list(state_dict))}')
    return _with_versions(found, getattr(state_dict, '_metadata', OrderedDict()))


def device_of(map_location: Any) -> torch.device:
    """The device that a `map_location` of `torch.load` names; functions and mappings leave it the CPU."""
    named = isinstance(map_location, (str, torch.device))
    return torch.device(map_location if named else 'cpu')


def load_into(model: nn.Module, state_dict: Mapping[str, Tensor], path: str | os.PathLike) -> None:
    """Load every tensor into `model`, or fail.

    What counts is what the modules themselves make of the names: renamings in `_load_from_state_dict`, as
    mmdet's detectors do for old checkpoints, are followed, and so is a RieM module that takes its states from
    `weight`.

    Harmless, and therefore let pass: absent `num_batches_tracked` (a count that a fixed-momentum norm does
    not use; old files lack it) and `relative_position_index` (fixed by the window size); and an extra tensor
    that the model has itself, with the same values, as a non-persistent buffer (`data_preprocessor.mean`).

    After an error the model may hold a part of the tensors: do not use it.

    Args:
        model: a detector, also one wrapped for distributed or test-time-augmented use.
        state_dict: tensors by name.
        path: of their file, for the message.

    Raises:
        RiemError: names the first few keys that are missing, unexpected, or of another shape.
    """
    while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
        model = model.get_submodule('module')
    misshapen: dict[str, str] = {}
    try:
        missing, unexpected = _load(model, state_dict, path)
    except RiemError:
        misshapen = _misshapen(model, state_dict)
        if not misshapen:
            raise
        missing, unexpected = _load(model, {n: t for n, t in state_dict.items() if n not in misshapen}, path)
    missing = [name for name in missing if name not in misshapen and not name.endswith(DERIVABLE)]
    fixed = dict(model.named_buffers())
    unexpected = [name for name in unexpected if not _same(fixed.get(name), state_dict.get(name))]
    found = {'missing': missing, 'unexpected': unexpected, 'wrong shape': list(misshapen.values())}
    if any(found.values()):
        raise RiemError(
            f'{path}: does not fit the model of the config: '
            + '; '.join(_listed(title, keys) for title, keys in found.items() if keys)
            + f'; {_remedy(model, state_dict)}'
        )


def _remedy(model: nn.Module, state_dict: Mapping[str, Tensor]) -> str:
    """What to do about names that do not fit: they may be those of the model with something before them."""
    own = {name for name in model.state_dict() if not name.endswith(DERIVABLE)}
    ends = [name[: -len(its)] for name in state_dict for its in (min(own, default=''),) if its and name.endswith(its)]
    fitting = [
        prefix
        for prefix in sorted(set(filter(None, ends)), key=lambda prefix: (len(prefix), prefix))
        if sum(prefix + name in state_dict for name in own) > MOST_FIT * len(own)
    ]
    if fitting:
        begin = ' or '.join(map(repr, map(_brief_name, fitting[:SHOWN_KEYS])))
        return f'its names begin with {begin}: take these with --prefix {_brief_name(fitting[0])}'
    others = sorted({part for part in AVERAGES if any(name.startswith(part) for name in state_dict)})
    if others:
        return f'names that begin with {others[0]!r} are averages beside the weights: leave them out of the file'
    return 'give the config that this file was made with'


def _load(model: nn.Module, state_dict: Mapping[str, Tensor], path: str | os.PathLike) -> tuple[list, list]:
    """The missing and the unexpected keys, once all others are loaded."""
    try:
        result = model.load_state_dict(state_dict, strict=False)
    except RiemError:
        raise
    except RuntimeError as error:  # other shapes; line 0 is a heading
        raise RiemError(f'{path}: does not fit the model of the config ({_first_line(error, 1)})') from error
    return result.missing_keys, result.unexpected_keys


def _misshapen(model: nn.Module, state_dict: Mapping[str, Tensor]) -> dict[str, str]:
    """What is wrong with the shape of a tensor, by its name."""
    return {
        name: f'{name} {tuple(state_dict[name].shape)} instead of {tuple(own.shape)}'
        for name, own in model.state_dict().items()
        if name in state_dict and state_dict[name].shape != own.shape
    }


def _kind(path: Path) -> str:
    """`zip`, `pickle` or `safetensors`, by the first bytes."""
    try:
        is_there = path.exists()
    except (OSError, ValueError) as error:  # a name that no file can have
        raise RiemError(f'{path}: no such file; give the path of a checkpoint') from error
    if not is_there:
        raise RiemError(f'{path}: no such file; give the path of a checkpoint')
    if path.is_dir():
        raise RiemError(f'{path}: expected a checkpoint file, found a folder; give the path of the file in it')
    if not path.is_file():
        raise RiemError(f'{path}: expected a checkpoint file, found a device or pipe; give the path of a file')
    if path.suffix == '.riem':
        raise RiemError(f'{path}: expected a .pth checkpoint, found a .riem file; give what it was made from')
    with path.open('rb') as file:
        head = file.read(64)
    if head.startswith(b'PK\x03\x04'):
        return 'zip'
    if head.startswith(b'\x80'):
        return 'pickle'
    if head[8:9] == b'{':
        return 'safetensors'
    if head.startswith(b'version https://git-lfs'):
        raise RiemError(f'{path}: expected a checkpoint, found a Git LFS pointer to it; run `git lfs pull`')
    found = f'a file that begins with {head[:16]!r}' if head else 'an empty file'
    raise RiemError(f'{path}: expected a checkpoint written by torch.save, found {found}; fetch it again')


def _read_safetensors(path: Path, map_location: Any) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load_file(path, device=str(device_of(map_location)))
    except safetensors.SafetensorError as error:
        raise RiemError(f'{path}: a damaged .safetensors file ({error}); fetch it again') from error


_TRUST = 'if you trust whoever made it, pass --trust-checkpoint, which reads it without protection'


def _refusal(path: Path, error: pickle.UnpicklingError) -> RiemError:
    said = str(error)
    name = re.search(r'GLOBAL ([\w.]+)', said) or re.search(r'`?([\w.]+)`? (?:was|is) not an allowed global', said)
    if name is not None:
        return RiemError(
            f'{path}: expected tensors and plain values, found {_brief_name(name[1])}, and reading that could run code '
            f'from the file; {_TRUST}'
        )
    return RiemError(_of_another_kind(path, error))


def _dataset_meta(tree: Any, path: Path) -> dict[str, Any]:
    """What a checkpoint tells of its data set, in new lists and dictionaries.

    Raises:
        RiemError: it has more than `MOST_VALUES` values, written out, or names that are no texts.
    """
    meta = tree.get('meta') if isinstance(tree, Mapping) else None
    meta = meta if isinstance(meta, Mapping) else {}
    if isinstance(meta.get('dataset_meta'), Mapping):
        told = meta['dataset_meta']
    else:  # mmdet 2
        told = {key: meta[key] for key in ('CLASSES', 'PALETTE') if meta.get(key) is not None}
    copy = _Copy(path)
    return {str(copy(key)).lower(): copy(value) for key, value in told.items()}


class _Copy:
    """Copies a value without numpy's types. Shared parts are copied as often as they are met, so all are counted."""

    def __init__(self, path: Path) -> None:
        self.path, self.left = path, MOST_VALUES

    def __call__(self, value: Any, depth: int = 0) -> Any:
        self.left -= 1
        if isinstance(value, np.ndarray):
            self.left -= value.size
        elif isinstance(value, (str, bytes)):
            self.left -= len(value) // CHARACTERS
        if self.left < 0 or depth > MAX_JSON_DEPTH:
            raise RiemError(
                f'{self.path}: expected at most {MOST_VALUES} values, {MAX_JSON_DEPTH} deep, as description of the '
                'data set, found more; save the file again without its dataset_meta'
            )
        if isinstance(value, (np.ndarray, np.generic)):
            return value.tolist()
        if isinstance(value, Mapping):
            return {self(key, depth + 1): self(item, depth + 1) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return (list if isinstance(value, list) else tuple)(self(item, depth + 1) for item in value)
        return value


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open('rb') as file:
        for block in iter(lambda: file.read(1 << 20), b''):
            digest.update(block)
    return digest.hexdigest()


def _same(buffer: Tensor | None, tensor: Tensor | None) -> bool:
    """None is a name that the model has nothing of, or that it has made of another one."""
    if buffer is None or tensor is None:
        return False
    return buffer.shape == tensor.shape and torch.equal(buffer.cpu(), tensor.cpu().to(buffer.dtype))


def _listed(title: str, keys: list[str]) -> str:
    more = f' and {len(keys) - SHOWN_KEYS} more' if len(keys) > SHOWN_KEYS else ''
    return f'{title} {", ".join(map(_brief_name, keys[:SHOWN_KEYS]))}{more}'


def _brief_name(name: str) -> str:
    """A name from a file, cut to what a message of one line can bear."""
    shown = name if name.isprintable() else ascii(name)[1:-1]
    return shown if len(shown) <= SHOWN_CHARACTERS else f'{shown[:SHOWN_CHARACTERS]}...'


def _first_line(error: Exception, line: int = 0) -> str:
    lines = [text.strip() for text in str(error).splitlines() if text.strip()]
    return lines[min(line, len(lines) - 1)][:200] if lines else type(error).__name__
