"""The manifest read back: every value checked and bounded before it is used."""

from __future__ import annotations

import base64
import binascii
import json
import math
import zlib
from collections.abc import Callable
from dataclasses import fields
from typing import Any

from ..errors import RiemError, brief, naming
from ..weights.views import WeightView
from .dense import DTYPES, DenseLayout
from .derived import DerivedRecord
from .limits import Limits, limits_for
from .manifest import BLOBS, MAX_JSON_DEPTH, Manifest, Source, WeightEntry, _is_scalar, _to_json, plain_json

# Bounds that a file of any size is held to; see also `limits`.
MAX_KEYS = 100_000
MAX_KEY_CHARS = 512
MAX_DIMENSIONS = 8
MAX_SIZE = 2**31 - 1
MOST_ELEMENTS = 2**32  # of a tensor
DIGEST_BYTES = 32


def expand_manifest(compressed: bytes, where: str, limits: Limits | None = None) -> Manifest:
    """The inverse of ``compress_manifest``, for bytes that nobody vouches for.

    Args:
        compressed: the tensor ``manifest``.
        where: name of the file, for the errors.
        limits: of the file; those of one that holds nothing else where they are not given.

    Raises:
        RiemError: anything that ``compress_manifest`` does not write, or beyond the limits.
    """
    limits = limits_for(len(compressed)) if limits is None else limits
    text = _inflate(compressed, where, limits)
    with naming(where):
        # an upper bound that takes no parser
        limits.require('json_values', 1 + sum(text.count(mark) for mark in b',:[{'), 'values in the manifest')
    manifest = _from_json(_parse(text, where), where, limits)
    if _to_json(manifest).encode('ascii') != text:
        raise RiemError(f'{where}: expected the canonical spelling of the manifest, found another one')
    return manifest


def _inflate(compressed: bytes, where: str, limits: Limits) -> bytes:
    inflater = zlib.decompressobj()
    try:
        text = inflater.decompress(compressed, limits.json_bytes)
    except zlib.error as error:
        raise RiemError(f'{where}: expected a zlib-compressed manifest, found {error}') from error
    if not inflater.eof:
        with naming(where):
            limits.require('json_bytes', len(text) + 1, 'bytes of a manifest, written out')
        raise RiemError(f'{where}: expected a whole zlib-compressed manifest, found one that is cut off')
    if inflater.unused_data:
        raise RiemError(f'{where}: expected nothing after the manifest, found {len(inflater.unused_data)} bytes')
    return text


def _parse(text: bytes, where: str) -> dict[str, Any]:
    try:
        manifest = json.loads(text.decode('ascii'))
    except (ValueError, RecursionError) as error:
        raise RiemError(f'{where}: expected a manifest in JSON, found {brief(text[:100])}') from error
    if not isinstance(manifest, dict):
        raise RiemError(f'{where}: expected a JSON object as manifest, found {brief(manifest)}')
    return manifest


class _Table:
    """One object of the manifest, whose fields are checked when they are taken."""

    def __init__(self, values: object, name: str, where: str) -> None:
        if not isinstance(values, dict):
            raise RiemError(f'{where}: expected an object as manifest field {name}, found {brief(values)}')
        self.values, self.name, self.where = values, name, where

    def take(self, field: str, check: Callable[[Any], Any]) -> Any:
        """A field through ``check``, which raises ValueError with what it expected."""
        if field not in self.values:
            raise RiemError(f'{self.where}: expected the manifest field {self.name}.{field}, found none')
        return self._checked(self.values[field], field, check)

    def column(self, field: str, count: int, check: Callable[[Any], Any]) -> list:
        """A field that is a list of ``count`` values, each through ``check``."""
        values = self.take(field, _list_of_length(count))
        return [self._checked(value, f'{field}[{index}]', check) for index, value in enumerate(values)]

    def _checked(self, value: Any, field: str, check: Callable[[Any], Any]) -> Any:
        try:
            return check(value)
        except ValueError as error:
            raise RiemError(
                f'{self.where}: expected {error} in manifest field {self.name}.{field}, found {brief(value)}'
            ) from error


def _from_json(values: dict[str, Any], where: str, limits: Limits) -> Manifest:
    top = _Table(values, 'manifest', where)
    keys = _decode_keys(top.take('keys', _list_of_text), where, limits)
    kinds = top.take('kinds', _kinds_of_length(len(keys)))
    aliases = _decode_aliases(top, keys, kinds)
    names = {kind: [key for key, its_kind in zip(keys, kinds) if its_kind == kind] for kind in 'wdr'}
    return Manifest(
        keys=keys,
        weights=_decode_weights(_Table(top.take('weights', _any), 'weights', where), names['w'], aliases),
        dense=_decode_dense(_Table(top.take('dense', _any), 'dense', where), names['d'], aliases),
        derived=_decode_derived(_Table(top.take('derived', _any), 'derived', where), names['r']),
        blobs=_decode_blobs(_Table(top.take('blobs', _any), 'blobs', where)),
        dataset_meta=top.take('dataset_meta', _json_object),
        settings=top.take('settings', _json_object),
        source=Source(*top.column('source', len(fields(Source)), _text)),
        producer=top.take('producer', _text),
    )


def _decode_keys(coded: list[str], where: str, limits: Limits) -> tuple[str, ...]:
    if len(coded) > MAX_KEYS:
        raise RiemError(f'{where}: expected at most {MAX_KEYS} keys, found {len(coded)}')
    keys: dict[str, None] = {}
    previous: list[str] = []
    written = 0
    for text in coded:
        shared, _, rest = text.partition(':')
        count = int(shared) if shared.isdecimal() and shared.isascii() and len(shared) < 4 else -1
        key = '.'.join([*previous[:count], rest])
        if not 0 <= count <= len(previous) or len(key) > MAX_KEY_CHARS or key in keys:
            raise RiemError(
                f'{where}: expected distinct keys of at most {MAX_KEY_CHARS} characters, found {brief(text)} '
                f'after {brief(".".join(previous))}'
            )
        keys[key] = None
        previous = key.split('.')
        written += len(key)
        if written > limits.json_bytes:
            raise RiemError(f'{where}: expected keys of at most {limits.json_bytes} characters together, found more')
    return tuple(keys)


def _decode_aliases(top: _Table, keys: tuple[str, ...], kinds: str) -> dict[str, tuple[str, ...]]:
    """Further keys by first key."""
    places = [place for place, kind in enumerate(kinds) if kind == 'a']
    aliases: dict[str, list[str]] = {}
    for place, first in zip(places, top.column('aliases', len(places), _count)):
        if first >= place or kinds[first] not in 'wd':
            raise RiemError(f'{top.where}: expected key {keys[place]!r} to stand for an earlier weight or dense tensor')
        aliases.setdefault(keys[first], []).append(keys[place])
    return {first: tuple(further) for first, further in aliases.items()}


def _decode_weights(table: _Table, names: list[str], aliases: dict[str, tuple[str, ...]]) -> tuple[WeightEntry, ...]:
    count = len(names)
    columns = (
        table.column('shape', count, _shape),
        table.column('layout', count, _text),
        table.column('groups', count, _count),
        table.column('dtype', count, _float_dtype),
        table.column('representation', count, _text),
        table.column('settings', count, _json_object),
        table.column('symbols', count, _count),
        table.column('n_bytes', count, _count),
        table.take('stream', _digests(count)),
        table.take('decoded', _digests(count)),
    )
    with naming(table.where):
        return tuple(
            WeightEntry(WeightView(name, shape, layout, groups, aliases.get(name, ()), DTYPES[dtype]), *rest)
            for name, shape, layout, groups, dtype, *rest in zip(names, *columns)
        )


def _decode_dense(table: _Table, names: list[str], aliases: dict[str, tuple[str, ...]]) -> tuple[DenseLayout, ...]:
    columns = (
        table.column('shape', len(names), _shape),
        table.column('dtype', len(names), _dtype),
        table.column('storage', len(names), _text),
    )
    with naming(table.where):
        return tuple(DenseLayout(*entry, aliases.get(entry[0], ())) for entry in zip(names, *columns))


def _decode_derived(table: _Table, names: list[str]) -> tuple[DerivedRecord, ...]:
    columns = (
        table.column('shape', len(names), _shape),
        table.column('dtype', len(names), _dtype),
        table.column('recipe', len(names), _text),
        table.column('params', len(names), _params),
    )
    return tuple(DerivedRecord(*entry) for entry in zip(names, *columns))


def _decode_blobs(table: _Table) -> dict[str, bytes]:
    return {name: table.take(name, _digests(1))[0] for name in set(BLOBS.values()) if name in table.values}


def _any(value: Any) -> Any:
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str) or not _is_scalar(value):
        raise ValueError('text')
    return value


def _list_of_text(value: Any) -> list[str]:
    if not isinstance(value, list):
        raise ValueError('a list of text')
    return [_text(item) for item in value]


def _list_of_length(count: int) -> Callable[[Any], list]:
    def check(value: Any) -> list:
        if not isinstance(value, list) or len(value) != count:
            raise ValueError(f'a list of {count} values')
        return value

    return check


def _kinds_of_length(count: int) -> Callable[[Any], str]:
    def check(value: Any) -> str:
        if not isinstance(value, str) or len(value) != count or set(value) - set('wdra'):
            raise ValueError(f'{count} characters of w, d, r, a')
        return value

    return check


def _count(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 2**48:
        raise ValueError('a count')
    return value


def _shape(value: Any) -> tuple[int, ...]:
    sane = isinstance(value, list) and len(value) <= MAX_DIMENSIONS
    if not sane or any(type(size) is not int or not 0 <= size <= MAX_SIZE for size in value):
        raise ValueError(f'a shape of at most {MAX_DIMENSIONS} sizes of at most {MAX_SIZE}')
    if math.prod(size for size in value if size) > MOST_ELEMENTS:
        raise ValueError(f'a shape of at most {MOST_ELEMENTS} elements')
    return tuple(value)


def _dtype(value: Any) -> str:
    if not isinstance(value, str) or value not in DTYPES:
        raise ValueError(f'a dtype among {", ".join(DTYPES)}')
    return value


def _float_dtype(value: Any) -> str:
    if not DTYPES[_dtype(value)].is_floating_point:
        raise ValueError('a floating dtype')
    return value


def _params(value: Any) -> tuple:
    if not isinstance(value, list) or not all(isinstance(item, (int, float)) and _is_scalar(item) for item in value):
        raise ValueError('a list of numbers')
    return tuple(value)


def _json_object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError('an object')
    try:
        return plain_json(value, '')
    except RiemError:
        raise ValueError(f'finite numbers of 64 bits, text, and at most {MAX_JSON_DEPTH} levels') from None


def _digests(count: int) -> Callable[[Any], list[bytes]]:
    def check(value: Any) -> list[bytes]:
        try:
            raw = base64.b64decode(_text(value) + '=' * (-len(value) % 4), validate=True)
        except (binascii.Error, ValueError):
            raw = b'?'
        if len(raw) != count * DIGEST_BYTES:
            raise ValueError(f'{count} SHA-256 in base64')
        return [raw[start : start + DIGEST_BYTES] for start in range(0, len(raw), DIGEST_BYTES)]

    return check
