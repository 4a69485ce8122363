"""Streams of symbols with their distributions, written and read (ANS coding by constriction)."""

from __future__ import annotations

import itertools
import struct

import numpy as np
from constriction import stream

from ..errors import RiemError

LANES = 4
"""Streams that the tokens of a large matrix are dealt to: a processor works on them side by side."""
_LENGTHS = struct.Struct('<III')  # bytes of each stream but the last
BITS_24 = stream.model.Uniform(1 << 24)
"""The distribution of 24 bits as they are."""
_ENDS_ELSEWHERE = 'integer stream: expected its end after the last integer, found it elsewhere; the file is damaged'


class Writer:
    """Collects symbols with their distributions; the coders want them last to first."""

    def __init__(self, lanes: int = 1) -> None:
        self._calls: list[list[tuple[np.ndarray, object]]] = [[] for _ in range(lanes)]

    def code(self, symbols: np.ndarray, model: object) -> np.ndarray:
        self._calls[0].append((symbols.astype(np.int32, copy=False), model))
        return symbols

    def deal(self, symbols: np.ndarray, model: object) -> np.ndarray:
        for lane, calls in enumerate(self._calls):
            if len(part := symbols[lane :: len(self._calls)]):
                calls.append((part.astype(np.int32), model))
        return symbols

    def payload(self) -> bytes:
        parts = [_payload(calls) for calls in self._calls]
        return parts[0] if len(parts) == 1 else _LENGTHS.pack(*map(len, parts[:-1])) + b''.join(parts)


def _payload(calls: list[tuple[np.ndarray, object]]) -> bytes:
    coder = stream.stack.AnsCoder()
    coder.encode_reverse(np.array([1], np.int32), BITS_24)
    for symbols, model in reversed(calls):
        coder.encode_reverse(symbols, model)
    return coder.get_compressed().astype('<u4').tobytes().rstrip(b'\0')


class Reader:
    """Gives back what a writer collected; of the symbols it is called with, only their number counts."""

    def __init__(self, payloads: tuple[bytes, ...]) -> None:
        self._coders = [
            stream.stack.AnsCoder(np.frombuffer(part + bytes(-len(part) % 4), '<u4').astype(np.uint32))
            for part in payloads
        ]

    def code(self, symbols: np.ndarray, model: object) -> np.ndarray:
        return self._coders[0].decode(model, len(symbols))

    def deal(self, symbols: np.ndarray, model: object) -> np.ndarray:
        lanes = len(self._coders)
        if lanes == 1:
            return self.code(symbols, model)
        dealt = np.empty(len(symbols), np.int32)
        for lane, coder in enumerate(self._coders[: len(symbols)]):
            dealt[lane::lanes] = coder.decode(model, len(dealt[lane::lanes]))
        return dealt

    def finish(self) -> None:
        for coder in self._coders:
            # a stream that ran out has given zeros only
            if coder.decode(BITS_24) != 1 or not coder.is_empty():
                raise RiemError(_ENDS_ELSEWHERE)


def split_lanes(data: bytes, lanes: int = 1) -> tuple[bytes, ...]:
    """Those of the streams in the bytes."""
    parts: tuple[bytes, ...] = (data,)
    if lanes > 1:
        if len(data) < _LENGTHS.size:
            raise RiemError(f'integer stream: expected at least {_LENGTHS.size} bytes, found {len(data)}')
        stops = list(itertools.accumulate(_LENGTHS.unpack_from(data), initial=_LENGTHS.size))
        if stops[-1] > len(data):
            raise RiemError(f'integer stream: expected {stops[-1]} bytes and more, found {len(data)}')
        parts = tuple(data[start:stop] for start, stop in zip(stops, [*stops[1:], len(data)]))
    for part in parts:
        if part[-1:] == b'\0':
            raise RiemError('integer stream: expected no zero byte at its end, found one; the file is damaged')
    return parts
