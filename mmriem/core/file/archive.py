"""The ``.riem`` file: archives of compressed weights, read strictly, written atomically.

A file is a safetensors file (``mmriem.core.file.frame``) of at most six tensors: ``dense32``, ``dense16``, ``raw``
and ``vectors`` hold what stays dense, ``streams`` the payloads of the compressed weights, ``manifest`` says what is
where (``mmriem.core.file.manifest``). Nothing in it is ever unpickled. Each byte is under a SHA-256 or compared
with the only value that it may have, and each size is bounded before it is allocated.
"""

from __future__ import annotations

import hashlib
import os
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import Any, Union

import torch
from torch import Tensor

from mmriem.version import __version__

from ..errors import RiemError, naming, out_of_memory
from ..execution.tasks import Progress, costly_first, in_order
from ..representations.base import Encoded
from ..weights.views import WeightView
from . import vectors
from .dense import STORAGES, DenseRecord, dtype_name, store
from .derived import DerivedRecord, derive
from .frame import encode_digest, pack
from .manifest import BLOBS, Manifest, Source, WeightEntry, compress_manifest, shapes_of
from .vectors import PRECISION, VectorRecord, quantise

PathLike = Union[str, 'os.PathLike[str]']
RECORD = 'riem'
"""Attribute of a decoded tensor: the record of its weight, or None where it is no compressed one."""


@dataclass(frozen=True, eq=False)
class WeightRecord:
    """A compressed weight.

    Attributes:
        view: the parameter and how it is seen as a matrix.
        encoded: the representation of that matrix.
        decoded_sha256: of the decoded weight, little-endian float32 in the shape of the parameter; computed
            where it is not given.

    Raises:
        RiemError: the representation has another shape than the view's matrix, or does not decode to finite
            values.
    """

    view: WeightView
    encoded: Encoded
    decoded_sha256: bytes = b''

    def __post_init__(self) -> None:
        if tuple(self.encoded.shape) != self.view.matrix_shape:
            raise RiemError(
                f'weight {self.view.name!r}: expected a representation of shape {self.view.matrix_shape}, '
                f'found {tuple(self.encoded.shape)}'
            )
        if not self.decoded_sha256:
            object.__setattr__(self, 'decoded_sha256', _finite_digest(self.view.name, self._weight()))

    @classmethod
    def decoded(cls, view: WeightView, encoded: Encoded) -> tuple[WeightRecord, Tensor]:
        """The record, and the parameter in its shape and dtype, decoded once."""
        weight = view.from_matrix(encoded.decode()).contiguous()
        return cls(view, encoded, _finite_digest(view.name, weight)), weight.to(view.dtype)

    def decode(self) -> Tensor:
        """The parameter in its shape and dtype; the attribute ``riem`` of the tensor is this record.

        Raises:
            RiemError: the decoded values are not those that were hashed when the record was made.
        """
        weight = self._weight()
        found = _weight_digest(weight)
        if found != self.decoded_sha256:
            raise RiemError(
                f'weight {self.view.name!r}: expected SHA-256 {encode_digest(self.decoded_sha256)} of the '
                f'decoded values, found {encode_digest(found)}; compress the checkpoint again'
            )
        tensor = weight.to(self.view.dtype)
        if not all(end.isfinite() for end in tensor.aminmax()):  # NaN is both of them
            raise RiemError(f'weight {self.view.name!r}: expected finite decoded values, found others')
        setattr(tensor, RECORD, self)
        return tensor

    def __deepcopy__(self, memo: dict[int, Any]) -> WeightRecord:
        """Itself, being immutable: a copied state dict (as for an EMA of the weights) shares the records."""
        return self

    def __reduce__(self) -> tuple[type, tuple]:
        """Nothing of it: ``torch.save`` of a decoded state dict writes plain tensors that load anywhere."""
        return OrderedDict, ()

    def _weight(self) -> Tensor:
        return self.view.from_matrix(self.encoded.decode()).contiguous()


@dataclass(frozen=True, eq=False)
class Archive:
    """A compressed state dict: what a ``.riem`` file holds.

    Attributes:
        keys: every state-dict key, in order.
        weights, dense, derived: records, each kind in state-dict order; together they cover the keys, aliases
            included, once each.
        dataset_meta: class names, palette; JSON-able.
        source: the checkpoint that was compressed.
        settings: how it was compressed; JSON-able.
        producer: version of mmriem that made it.
        origin: file that it was read from, for errors.
    """

    keys: tuple[str, ...]
    weights: tuple[WeightRecord, ...]
    dense: tuple[DenseRecord | VectorRecord, ...]
    derived: tuple[DerivedRecord, ...]
    dataset_meta: dict[str, Any]
    source: Source
    settings: dict[str, Any]
    producer: str = __version__
    origin: str = field(default='archive', repr=False)

    @classmethod
    def from_state_dict(
        cls,
        state_dict: Mapping[str, Tensor],
        weights: Iterable[WeightRecord],
        *,
        dataset_meta: Mapping[str, Any],
        source: Source,
        settings: Mapping[str, Any],
        vectors: Mapping[str, str] = MappingProxyType({}),
        precision: int = PRECISION,
        rounded: Mapping[str, VectorRecord] = MappingProxyType({}),
    ) -> Archive:
        """The archive of a model: compressed weights, and the rest of its state dict derived or dense.

        Tensors that share their memory in ``state_dict`` are stored once and shared again after decoding.

        Args:
            state_dict: of the model.
            weights: records of compressed weights.
            dataset_meta, source, settings: see the class.
            vectors: keys of norms and biases that may be rounded, each with its storage of `mmriem.core.file.vectors`.
            precision: with which they are.
            rounded: those of them that are rounded already.

        Raises:
            RiemError: a weight that the state dict does not hold in that shape and dtype, or an entry that is
                no tensor.
        """
        compressed = {record.view.name: record for record in weights}
        _check_weights(state_dict, compressed.values())
        covered = {key for record in compressed.values() for key in (record.view.name, *record.view.aliases)}
        rest = {key: tensor for key, tensor in state_dict.items() if key not in covered}
        derived = {key: record for key, tensor in rest.items() if (record := derive(key, tensor))}
        shared = _shared(rest, skip=derived)
        return cls(
            keys=tuple(state_dict),
            weights=tuple(compressed[key] for key in state_dict if key in compressed),
            dense=tuple(
                rounded.get(first)
                or (first in vectors and quantise(first, rest[first], vectors[first], precision, aliases))
                or store(first, rest[first], aliases)
                for first, aliases in shared.items()
            ),
            derived=tuple(derived.values()),
            dataset_meta=dict(dataset_meta),
            source=source,
            settings=dict(settings),
        )

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every state-dict key, in order."""
        views = [record.view for record in self.weights]
        return shapes_of(self.keys, views, [record.layout for record in self.dense], self.derived)

    def check_against(self, expected: Mapping[str, Sequence[int]]) -> None:
        """Compare with the keys and shapes of the model that is to be loaded.

        Args:
            expected: state-dict keys of the model with their shapes.

        Raises:
            RiemError: a key is missing in the file, not in the model, or has another shape.
        """
        require_shapes(self.origin, expected, self.shapes)

    def decode(self, progress: Progress | None = None) -> OrderedDict[str, Tensor]:
        """Every tensor of the state dict in its original order, shape and dtype.

        Keys that shared a parameter share one tensor. A tensor of a compressed weight carries its
        ``WeightRecord`` as attribute ``riem``, any other one None, which tells it from one of a plain checkpoint.

        Args:
            progress: called with the share of the compressed elements that are decoded, 0 to 1.

        Raises:
            RiemError: a decoded weight has not the values that were compressed.
        """
        tensors: dict[str, Tensor] = {}
        costs = [record.encoded.symbols for record in self.weights]
        decoded = costly_first(WeightRecord.decode, self.weights, costs, torch.get_num_threads())
        with out_of_memory(self.origin):
            for names, tensor in self._named(decoded, progress):
                setattr(tensor, RECORD, getattr(tensor, RECORD, None))
                tensors.update(dict.fromkeys(names, tensor))
        return OrderedDict((key, tensors[key]) for key in self.keys)

    def decode_others(self) -> dict[str, Tensor]:
        """Every tensor that is not of a compressed weight, as :meth:`decode` gives it.

        Raises:
            RiemError: there is too little memory.
        """
        tensors: dict[str, Tensor] = {}
        with out_of_memory(self.origin):
            for names, tensor in self._named(iter(()), None):
                setattr(tensor, RECORD, None)
                tensors.update(dict.fromkeys(names, tensor))
        return tensors

    def verify(self) -> None:
        """Decode everything, one tensor at a time.

        Raises:
            RiemError: as ``decode``.
        """
        with out_of_memory(self.origin):
            for _ in self._named(in_order(WeightRecord.decode, self.weights, torch.get_num_threads()), None):
                pass

    def to_bytes(self) -> bytes:
        """The file, deterministic.

        Raises:
            RiemError: settings or dataset_meta that JSON cannot hold, or records that do not cover the keys.
        """
        return self._bytes

    @cached_property
    def _bytes(self) -> bytes:
        payloads = [record.encoded.to_payload() for record in self.weights]
        blobs = {blob: b''.join(self._values(storage)) for storage, blob in BLOBS.items() if storage in STORAGES}
        blobs['vectors'] = self.vector_bytes()
        manifest = Manifest(
            keys=self.keys,
            weights=tuple(_entry(record, payload) for record, payload in zip(self.weights, payloads)),
            dense=tuple(record.layout for record in self.dense),
            derived=self.derived,
            blobs={name: _digest(blob) for name, blob in blobs.items() if blob},
            dataset_meta=self.dataset_meta,
            settings=self.settings,
            source=self.source,
            producer=self.producer,
        )
        return pack({**blobs, 'streams': b''.join(payloads), 'manifest': compress_manifest(manifest)})

    def vector_bytes(self) -> bytes:
        """The entropy-coded vectors, as the file holds them."""
        return vectors.encode([record for record in self.dense if isinstance(record, VectorRecord)])

    def _values(self, storage: str) -> list[bytes]:
        records = [record for record in self.dense if isinstance(record, DenseRecord)]
        return [record.values for record in records if record.layout.storage == storage]

    def _named(self, decoded: Iterator[Tensor], progress: Progress | None) -> Iterator[tuple[tuple[str, ...], Tensor]]:
        """All tensors with their keys; ``decoded`` are those of the weights."""
        with naming(self.origin):
            for derived in self.derived:
                yield (derived.name,), derived.decode()
            for dense in self.dense:
                yield (dense.layout.name, *dense.layout.aliases), dense.decode()
            total, done = sum(torch.Size(record.view.shape).numel() for record in self.weights), 0
            for weight, tensor in zip(self.weights, decoded):
                yield (weight.view.name, *weight.view.aliases), tensor
                done += tensor.numel()
                if progress is not None:
                    progress(done / total)


def require_shapes(origin: str, expected: Mapping[str, Sequence[int]], found: Mapping[str, Sequence[int]]) -> None:
    """Compare the keys and shapes of a model with those of a file; see ``Archive.check_against``."""
    missing = [key for key in expected if key not in found]
    unexpected = [key for key in found if key not in expected]
    mismatched = [
        f'{key} (expected {tuple(expected[key])}, found {tuple(shape)})'
        for key, shape in found.items()
        if key in expected and tuple(expected[key]) != tuple(shape)
    ]
    differences = (('missing', missing), ('unexpected', unexpected), ('with another shape', mismatched))
    parts = [f'{len(keys)} {kind}: {_first_few(keys)}' for kind, keys in differences if keys]
    if parts:
        raise RiemError(
            f'{origin}: config and file do not belong together, expected the {len(expected)} keys '
            f'of the model, found {"; ".join(parts)}; use the config that was written beside the file'
        )


def _digest(data: bytes | memoryview) -> bytes:
    return hashlib.sha256(data).digest()


def _finite_digest(name: str, weight: Tensor) -> bytes:
    if not weight.isfinite().all():
        raise RiemError(f'weight {name!r}: expected finite decoded values, found others')
    return _weight_digest(weight)


def _weight_digest(weight: Tensor) -> bytes:
    return _digest(weight.detach().numpy().astype('<f4', copy=False).data)


def _entry(record: WeightRecord, payload: bytes) -> WeightEntry:
    dtype_name(record.view.name, record.view.dtype)
    return WeightEntry(
        view=record.view,
        representation=record.encoded.name,
        settings=record.encoded.settings_json(),
        symbols=record.encoded.symbols,
        n_bytes=len(payload),
        stream=_digest(payload),
        decoded=record.decoded_sha256,
    )


def _check_weights(state_dict: Mapping[str, Tensor], records: Iterable[WeightRecord]) -> None:
    for key, tensor in state_dict.items():
        if not isinstance(tensor, Tensor):
            raise RiemError(f'key {key!r}: expected a tensor in the state dict, found {type(tensor).__name__}')
    for view in (record.view for record in records):
        for key in (view.name, *view.aliases):
            if key not in state_dict:
                raise RiemError(f'weight {key!r}: expected it in the state dict, found no such key')
            found = state_dict[key]
            if tuple(found.shape) != view.shape or found.dtype != view.dtype:
                raise RiemError(
                    f'weight {key!r}: expected {view.dtype} of shape {view.shape}, '
                    f'found {found.dtype} of shape {tuple(found.shape)} in the state dict'
                )


def _shared(tensors: Mapping[str, Tensor], skip: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """First key of each stored tensor, and the further keys that show the same memory in the same way."""
    first: dict[tuple, str] = {}
    aliases: dict[str, tuple[str, ...]] = {}
    for key, tensor in tensors.items():
        if key in skip:
            continue
        place = (tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride(), tensor.device)
        name = first.setdefault(place, key) if tensor.numel() else key
        aliases[name] = (*aliases.get(name, ()), key)
    return {name: names[1:] for name, names in aliases.items()}


def _first_few(keys: Sequence[str], count: int = 5) -> str:
    return ', '.join(keys[:count]) + (', ...' if len(keys) > count else '')
