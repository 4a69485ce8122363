"""The manifest of a ``.riem`` file: what is in it, as compact JSON, strictly read.

The JSON is one object in one spelling (sorted keys, no spaces), columns instead of records, so that zlib
finds the repetitions. Its fields:

keys
    State-dict keys in order. Each gives the number of leading dotted parts that it shares with the key before
    it, then the rest: ``stem.conv.bias`` after ``stem.conv.weight`` is ``2:bias``.
kinds
    One character per key: ``w`` weight, ``d`` dense, ``r`` derived, ``a`` alias of an earlier key.
aliases
    Per ``a``, the position of that earlier key.
weights
    Per ``w``: shape, layout, groups, dtype, representation, settings, symbols, bytes of its stream (the
    streams follow one another without gaps), SHA-256 of the stream and of the decoded weight.
dense
    Per ``d``: shape, dtype, storage (values follow one another in the tensor of their storage).
derived
    Per ``r``: shape, dtype, recipe, params.
blobs
    SHA-256 of the tensors ``dense16``, ``dense32``, ``raw`` and ``vectors``, where present.
dataset_meta, settings, source, producer
    As in :class:`mmriem.core.file.archive.Archive`. Hashes are base64 without padding.
"""

from __future__ import annotations

import base64
import json
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import RiemError, brief
from ..weights.views import WeightView
from .dense import DTYPES, VECTOR_STORAGES, DenseLayout
from .derived import DerivedRecord

# tensor of the file that holds a storage
BLOBS = {'half': 'dense16', 'single': 'dense32', 'raw': 'raw', **dict.fromkeys(VECTOR_STORAGES, 'vectors')}
MAX_JSON_DEPTH = 16


@dataclass(frozen=True)
class Source:
    """The checkpoint that was compressed: its file name and the SHA-256 of the file in hexadecimal."""

    name: str
    sha256: str


@dataclass(frozen=True)
class WeightEntry:
    """What the manifest says of a compressed weight.

    Attributes:
        view: name, shape and layout of the parameter.
        representation: registered name of the representation.
        settings: what the representation needs to parse its stream.
        symbols: number of integers in the stream.
        n_bytes: length of the stream.
        stream: SHA-256 of the stream.
        decoded: SHA-256 of the decoded weight, little-endian float32 in the shape of the parameter.
    """

    view: WeightView
    representation: str
    settings: dict[str, Any]
    symbols: int
    n_bytes: int
    stream: bytes
    decoded: bytes


@dataclass(frozen=True)
class Manifest:
    """The whole manifest; the entries of each kind are in state-dict order."""

    keys: tuple[str, ...]
    weights: tuple[WeightEntry, ...]
    dense: tuple[DenseLayout, ...]
    derived: tuple[DerivedRecord, ...]
    blobs: dict[str, bytes]
    dataset_meta: dict[str, Any]
    settings: dict[str, Any]
    source: Source
    producer: str

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every state-dict key, in order."""
        return shapes_of(self.keys, [entry.view for entry in self.weights], self.dense, self.derived)

    @property
    def decoded_bytes(self) -> int:
        """Of all tensors together, an element counted as 4 bytes at least, for what makes it is no smaller."""
        tensors = [(entry.view.shape, entry.view.dtype) for entry in self.weights]
        tensors += [(layout.shape, DTYPES[layout.dtype]) for layout in self.dense]
        tensors += [(record.shape, DTYPES[record.dtype]) for record in self.derived]
        return sum(math.prod(shape) * max(dtype.itemsize, 4) for shape, dtype in tensors)


def shapes_of(
    keys: Sequence[str], views: Sequence[WeightView], dense: Sequence[DenseLayout], derived: Sequence[DerivedRecord]
) -> dict[str, tuple[int, ...]]:
    """Shape of every key, in the order of the keys."""
    shapes: dict[str, tuple[int, ...]] = {record.name: record.shape for record in derived}
    layouts: list[WeightView | DenseLayout] = [*views, *dense]
    for layout in layouts:
        shapes.update(dict.fromkeys((layout.name, *layout.aliases), layout.shape))
    return {key: shapes[key] for key in keys}


def compress_manifest(manifest: Manifest) -> bytes:
    """The tensor ``manifest`` of a file: zlib of the JSON.

    Raises:
        RiemError: a value that JSON cannot hold, or keys and entries that do not cover one another.
    """
    return zlib.compress(_to_json(manifest).encode('ascii'), 9)


def plain_json(value: Any, where: str, depth: int = MAX_JSON_DEPTH) -> Any:
    """``value`` in the types that JSON gives back: tuples become lists, numpy values Python numbers.

    Raises:
        RiemError: another type, a key that is no string, NaN or infinity, an integer beyond 64 bits, text
            that is not Unicode, or deeper than ``depth``.

    >>> plain_json({'classes': ('cat', 'dog'), 'palette': np.zeros(3, int)}, 'dataset_meta')
    {'classes': ['cat', 'dog'], 'palette': [0, 0, 0]}
    """
    if isinstance(value, (np.generic, np.ndarray)):
        value = value.tolist()
    if depth and isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {plain_json(key, where): plain_json(item, where, depth - 1) for key, item in value.items()}
    if depth and isinstance(value, (list, tuple)):
        return [plain_json(item, where, depth - 1) for item in value]
    if not _is_scalar(value):
        raise RiemError(
            f'{where}: expected text, finite numbers, booleans, None, and lists and dictionaries of '
            f'these at most {MAX_JSON_DEPTH} deep, found {brief(value)}'
        )
    return value


def _is_scalar(value: object) -> bool:
    if isinstance(value, str):
        return _is_unicode(value)
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return -(2**63) <= value < 2**63
    return value is None or isinstance(value, bool)


def _is_unicode(text: str) -> bool:
    try:
        text.encode('utf-8')
    except UnicodeEncodeError:  # half of a surrogate pair
        return False
    return True


def _to_json(manifest: Manifest) -> str:
    kinds, aliases = _kinds(manifest)
    return _dump(
        {
            'aliases': aliases,
            'blobs': {name: _encode(digest) for name, digest in manifest.blobs.items()},
            'dataset_meta': plain_json(manifest.dataset_meta, 'dataset_meta'),
            'dense': _columns(manifest.dense, ('shape', 'dtype', 'storage')),
            'derived': _columns(manifest.derived, ('shape', 'dtype', 'recipe', 'params')),
            'keys': _front_code(manifest.keys),
            'kinds': kinds,
            'producer': manifest.producer,
            'settings': plain_json(manifest.settings, 'settings'),
            'source': [manifest.source.name, manifest.source.sha256],
            'weights': _weight_columns(manifest.weights),
        }
    )


def _dump(value: Any) -> str:
    return json.dumps(value, separators=(',', ':'), sort_keys=True, allow_nan=False)


def _kinds(manifest: Manifest) -> tuple[str, list[int]]:
    position = {key: index for index, key in enumerate(manifest.keys)}
    kinds: dict[str, str] = {}
    first: dict[str, str] = {}
    for kind, entries in (
        ('w', [entry.view for entry in manifest.weights]),
        ('d', manifest.dense),
        ('r', manifest.derived),
    ):
        for entry in entries:
            names = [entry.name, *getattr(entry, 'aliases', ())]
            for name in names:
                if name in kinds or name not in position:
                    raise RiemError(f'key {name!r}: expected it once among the keys and in one record')
                kinds[name], first[name] = ('a' if name != entry.name else kind), entry.name
    for key in manifest.keys:
        if key not in kinds:
            raise RiemError(f'key {key!r}: expected a record for every key, found none')
    text = ''.join(kinds[key] for key in manifest.keys)
    return text, [position[first[key]] for key in manifest.keys if kinds[key] == 'a']


def _columns(records: Sequence[Any], names: tuple[str, ...]) -> dict[str, list]:
    return {name: [getattr(record, name) for record in records] for name in names}


def _weight_columns(entries: Sequence[WeightEntry]) -> dict[str, Any]:
    views = [entry.view for entry in entries]
    return {
        **_columns(views, ('shape', 'layout', 'groups')),
        'dtype': [str(view.dtype).removeprefix('torch.') for view in views],
        **_columns(entries, ('representation', 'symbols', 'n_bytes')),
        'settings': [plain_json(entry.settings, f'settings of weight {entry.view.name!r}') for entry in entries],
        'stream': _encode(b''.join(entry.stream for entry in entries)),
        'decoded': _encode(b''.join(entry.decoded for entry in entries)),
    }


def _encode(digests: bytes) -> str:
    return base64.b64encode(digests).decode('ascii').rstrip('=')


def _front_code(keys: Sequence[str]) -> list[str]:
    coded: list[str] = []
    previous: list[str] = []
    for key in keys:
        parts, shared = key.split('.'), 0
        while shared < min(len(parts) - 1, len(previous)) and parts[shared] == previous[shared]:
            shared += 1
        coded.append(f'{shared}:{".".join(parts[shared:])}')
        previous = parts
    return coded
