"""Read a ``.riem`` file strictly: limits, spelling and hashes first, nothing half loaded.

What the manifest says is compared with the model, where there is one, and with what a file of its size may take
(``mmriem.core.file.limits``); only then are the other tensors of the file read, and only what these say is parsed.
"""

from __future__ import annotations

import io
import itertools
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from typing import BinaryIO

import torch

from ..errors import RiemError, naming, os_reason, out_of_memory
from ..execution.tasks import costly_first
from ..representations.base import Codec, Demand
from ..representations.packed import Packed
from ..representations.registry import get_representation
from . import vectors
from .archive import Archive, PathLike, WeightRecord, _digest, require_shapes
from .dense import STORAGES, DenseLayout, DenseRecord
from .frame import encode_digest, open_frame
from .limits import Limits, limits_for
from .manifest import BLOBS, Manifest, WeightEntry
from .manifest_reader import expand_manifest
from .vectors import VectorRecord

Shapes = Mapping[str, Sequence[int]]


def from_bytes(
    data: bytes, origin: str = 'archive', expected: Shapes | None = None, limit: float | None = None
) -> Archive:
    """The archive in the bytes of a ``.riem`` file; the inverse of ``Archive.to_bytes``.

    Args and errors are those of ``read``; ``origin`` names the file in errors.
    """
    return _from_stream(io.BytesIO(data), len(data), origin, expected, limit)


def read(path: PathLike, expected: Shapes | None = None, limit: float | None = None, *, parse: bool = True) -> Archive:
    """The archive in a ``.riem`` file: every hash of stored bytes verified, weights parsed, not yet decoded.

    Args:
        path: the file.
        expected: state-dict keys of the model that it is for, with their shapes, which the file must have. Without
            them the size of the file bounds what it may decode to.
        limit: raises the limits that a file of its size is held to, so many times; that of the environment variable
            ``MMRIEM_READ_LIMIT``, or 1, where it is not given.

        parse: False: payloads are compared with their hashes, and parsed when their weight is decoded.

    Raises:
        RiemError: the file cannot be read, is anything but a whole, valid ``.riem`` file, is of another model, or asks
            for more memory or time than its size allows.
    """
    _require_file(path)
    try:
        with open(path, 'rb') as stream:
            return _from_stream(stream, os.fstat(stream.fileno()).st_size, str(path), expected, limit, parse)
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


def _from_stream(
    stream: BinaryIO, size: int, origin: str, expected: Shapes | None, limit: float | None, parse: bool = True
) -> Archive:
    limits = limits_for(size, limit)
    limits = limits if expected is None else limits.with_model(expected)
    with out_of_memory(origin):
        frame = open_frame(stream, size, origin)
        with naming(origin):
            limits.require('json_bytes', frame.sizes['manifest'], 'bytes of a compressed manifest')
        manifest = expand_manifest(frame.read('manifest'), origin, limits)
        if expected is not None:
            require_shapes(origin, expected, manifest.shapes)
        with naming(origin):
            limits.require('decoded_bytes', manifest.decoded_bytes, 'decoded bytes')
            _check_demands(manifest.weights, limits)
            _check_lengths(frame.sizes, manifest)
            blobs = {name: frame.read(name) for name in frame.sizes if name != 'manifest'}
            for name, digest in manifest.blobs.items():  # that of the streams is checked one by one
                _require_digest(f'tensor {name}', blobs[name], digest)
            return Archive(
                keys=manifest.keys,
                weights=tuple(_weight_records(manifest.weights, blobs['streams'], parse)),
                dense=tuple(_dense_records(manifest.dense, blobs)),
                derived=manifest.derived,
                dataset_meta=manifest.dataset_meta,
                source=manifest.source,
                settings=manifest.settings,
                producer=manifest.producer,
                origin=origin,
            )


def _check_demands(entries: Sequence[WeightEntry], limits: Limits) -> None:
    """What each weight says of its stream, against its shape and settings, and what all of them take."""
    memory = nanoseconds = 0
    for entry in entries:
        with naming(f'weight {entry.view.name!r}'):
            codec = get_representation(entry.representation).codec
            demand = codec.record_demand(entry.view.matrix_shape, entry.settings)
            _check_demand(entry, demand)
        memory = max(memory, demand.memory)
        nanoseconds += demand.nanoseconds
    limits.require('decoded_bytes', memory, 'bytes to regenerate a weight')
    limits.require('nanoseconds', nanoseconds, 'nanoseconds to regenerate weights')


def _check_demand(entry: WeightEntry, demand: Demand) -> None:
    if entry.symbols != demand.symbols:
        raise RiemError(f'expected {demand.symbols} symbols by shape and settings, found {entry.symbols}')
    if not demand.least <= entry.n_bytes <= demand.most:
        between = f'{demand.least}' if demand.least == demand.most else f'{demand.least} to {demand.most}'
        raise RiemError(f'expected a stream of {between} bytes by shape and settings, found {entry.n_bytes}')


def _check_lengths(sizes: Mapping[str, int], manifest: Manifest) -> None:
    """Every tensor but the manifest: its length, and whether there is a hash of it."""
    lengths = {BLOBS[storage]: 0 for storage in STORAGES}
    for layout in manifest.dense:
        if not layout.is_vector:
            lengths[BLOBS[layout.storage]] += layout.n_bytes
    lengths['streams'] = sum(entry.n_bytes for entry in manifest.weights)
    for name, expected in lengths.items():
        if sizes[name] != expected:
            raise RiemError(f'tensor {name}: expected {expected} bytes by the manifest, found {sizes[name]}')
    elements = [layout.shape[0] for layout in manifest.dense if layout.is_vector]
    most = vectors.most_bytes(elements)
    if sizes['vectors'] > most:
        raise RiemError(f'tensor vectors: expected at most {most} bytes by the manifest, found {sizes["vectors"]}')
    present = {name for name in set(BLOBS.values()) if sizes[name]}
    if present != set(manifest.blobs):
        raise RiemError(f'expected SHA-256 of the tensors {sorted(present)}, found those of {sorted(manifest.blobs)}')


def _weight_records(entries: Sequence[WeightEntry], streams: bytes, parse: bool) -> Iterator[WeightRecord]:
    """By as many threads as torch computes with."""
    stops = list(itertools.accumulate(entry.n_bytes for entry in entries))

    def record(number: int) -> WeightRecord:
        entry, stop = entries[number], stops[number]
        payload = streams[stop - entry.n_bytes : stop]
        _require_digest(f'stream of weight {entry.view.name!r}', payload, entry.stream)
        with naming(f'weight {entry.view.name!r}'):
            encoded = _parse_payload(entry, payload) if parse else _unparsed(entry, payload)
            return WeightRecord(entry.view, encoded, entry.decoded)

    costs = [entry.symbols for entry in entries]
    return costly_first(record, range(len(entries)), costs, torch.get_num_threads())


def _unparsed(entry: WeightEntry, payload: bytes) -> Packed:
    return Packed(entry.representation, entry.view.matrix_shape, entry.symbols, entry.settings, payload)


def _parse_payload(entry: WeightEntry, payload: bytes) -> Codec:
    codec = get_representation(entry.representation).codec
    encoded = codec.from_record(entry.view.matrix_shape, entry.settings, payload)
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
