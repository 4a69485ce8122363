"""Read a ``.riem`` file strictly: bounds, spelling and hashes first, nothing half loaded."""

from __future__ import annotations

import io
import itertools
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from typing import BinaryIO

import torch

from ..errors import RiemError, naming, os_reason
from ..execution.tasks import costly_first
from ..representations.base import Codec
from ..representations.registry import get_representation
from . import vectors
from .archive import Archive, PathLike, WeightRecord, _digest
from .dense import STORAGES, DenseLayout, DenseRecord
from .frame import encode_digest, unpack
from .manifest import BLOBS, Manifest, WeightEntry
from .manifest_reader import expand_manifest
from .vectors import VectorRecord


def from_bytes(data: bytes, origin: str = 'archive') -> Archive:
    """The archive in the bytes of a ``.riem`` file; the inverse of ``Archive.to_bytes``.

    Raises:
        RiemError: as ``read``.
    """
    return _from_stream(io.BytesIO(data), len(data), origin)


def read(path: PathLike) -> Archive:
    """The archive in a ``.riem`` file: every hash of stored bytes verified, weights parsed, not yet decoded.

    Raises:
        RiemError: the file cannot be read or is anything but a whole, valid ``.riem`` file.
    """
    _require_file(path)
    try:
        with open(path, 'rb') as stream:
            return _from_stream(stream, os.fstat(stream.fileno()).st_size, str(path))
    except OSError as error:
        raise RiemError(f'{path}: expected a readable .riem file, found: {os_reason(error)}') from error


def _require_file(path: PathLike) -> None:
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError) as error:  # ValueError: a null character in the name
        raise RiemError(f'{path}: expected a .riem file, found: {os_reason(error)}') from error
    if not stat.S_ISREG(mode):
        found = 'a folder' if stat.S_ISDIR(mode) else 'no regular file'
        raise RiemError(f'{path}: expected a .riem file, found {found}')


def _from_stream(stream: BinaryIO, size: int, origin: str) -> Archive:
    blobs = unpack(stream, size, origin)
    manifest = expand_manifest(blobs['manifest'], origin)
    with naming(origin):
        _check_blobs(blobs, manifest)
        return Archive(
            keys=manifest.keys,
            weights=tuple(_weight_records(manifest.weights, blobs['streams'])),
            dense=tuple(_dense_records(manifest.dense, blobs)),
            derived=manifest.derived,
            dataset_meta=manifest.dataset_meta,
            source=manifest.source,
            settings=manifest.settings,
            producer=manifest.producer,
            origin=origin,
        )


def _check_blobs(blobs: Mapping[str, bytes], manifest: Manifest) -> None:
    """Every tensor but the manifest: its length, and its hash (that of the streams is checked one by one)."""
    lengths = {BLOBS[storage]: 0 for storage in STORAGES}
    for layout in manifest.dense:
        if not layout.is_vector:
            lengths[BLOBS[layout.storage]] += layout.n_bytes
    lengths['vectors'] = len(blobs['vectors']) if any(layout.is_vector for layout in manifest.dense) else 0
    lengths['streams'] = sum(entry.n_bytes for entry in manifest.weights)
    for name, expected in lengths.items():
        if len(blobs[name]) != expected:
            raise RiemError(f'tensor {name}: expected {expected} bytes by the manifest, found {len(blobs[name])}')
    present = {name for name in set(BLOBS.values()) if blobs[name]}
    if present != set(manifest.blobs):
        raise RiemError(f'expected SHA-256 of the tensors {sorted(present)}, found those of {sorted(manifest.blobs)}')
    for name, digest in manifest.blobs.items():
        _require_digest(f'tensor {name}', blobs[name], digest)


def _weight_records(entries: Sequence[WeightEntry], streams: bytes) -> Iterator[WeightRecord]:
    """By as many threads as torch computes with."""
    stops = list(itertools.accumulate(entry.n_bytes for entry in entries))

    def record(number: int) -> WeightRecord:
        entry, stop = entries[number], stops[number]
        payload = streams[stop - entry.n_bytes : stop]
        _require_digest(f'stream of weight {entry.view.name!r}', payload, entry.stream)
        with naming(f'weight {entry.view.name!r}'):
            return WeightRecord(entry.view, _parse_payload(entry, payload), entry.decoded)

    costs = [entry.symbols for entry in entries]
    return costly_first(record, range(len(entries)), costs, torch.get_num_threads())


def _parse_payload(entry: WeightEntry, payload: bytes) -> Codec:
    codec = get_representation(entry.representation).codec
    encoded = codec.from_record(entry.view.matrix_shape, entry.settings, payload)
    if encoded.symbols != entry.symbols:
        raise RiemError(f'expected {entry.symbols} symbols, found {encoded.symbols} in its stream')
    if (meant := encoded.settings_json()) != entry.settings:
        raise RiemError(f'expected the settings {entry.settings}, found that they mean {meant}')
    return encoded


def _dense_records(layouts: Sequence[DenseLayout], blobs: Mapping[str, bytes]) -> Iterator[DenseRecord | VectorRecord]:
    start = dict.fromkeys(STORAGES, 0)
    decoded = iter(vectors.decode(blobs['vectors'], [layout for layout in layouts if layout.is_vector]))
    for layout in layouts:
        if layout.is_vector:
            yield next(decoded)
            continue
        first = start[layout.storage]
        start[layout.storage] += layout.n_bytes
        yield DenseRecord(layout, blobs[BLOBS[layout.storage]][first : start[layout.storage]])


def _require_digest(what: str, data: bytes, expected: bytes) -> None:
    found = _digest(data)
    if found != expected:
        raise RiemError(
            f'{what}: expected SHA-256 {encode_digest(expected)}, found {encode_digest(found)}; copy the file again'
        )
