"""Integers of a few bits as bytes, and payloads cut into typed pieces that must fit exactly."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..errors import RiemError


def packed_bytes(count: int, bits: int) -> int:
    """Bytes that ``count`` integers of ``bits`` bits take, packed without gaps."""
    return (count * bits + 7) // 8


def pack(codes: Tensor, bits: int) -> bytes:
    """Integers ``0 .. 2**bits - 1`` as bytes, most significant bit first, zero bits at the end."""
    planes = np.unpackbits(codes.reshape(-1, 1).numpy(), axis=1)[:, 8 - bits :]
    return np.packbits(planes).tobytes()


def unpack(payload: bytes, bits: int, shape: tuple[int, ...]) -> Tensor:
    """Inverse of :func:`pack`: uint8 of ``shape``; :class:`RiemError` where a padding bit is set."""
    count = int(np.prod(shape))
    stream = np.unpackbits(np.frombuffer(payload, np.uint8))
    if stream[count * bits :].any():
        raise RiemError('padding bits of the integer stream: expected zeros, found ones; the file is damaged')
    planes = np.zeros((count, 8), np.uint8)
    planes[:, 8 - bits :] = stream[: count * bits].reshape(count, bits)
    return torch.from_numpy(np.packbits(planes, axis=1)).reshape(shape)


class PayloadReader:
    """Cuts a payload into typed pieces; every piece must be there and nothing may be left."""

    def __init__(self, payload: bytes, expected: int) -> None:
        if len(payload) != expected:
            raise RiemError(f'payload: expected {expected} bytes, found {len(payload)}')
        self._payload = memoryview(payload)
        self._at = 0

    def floats(self, dtype: str, shape: tuple[int, ...]) -> Tensor:
        """Little-endian floats (``'<f2'`` or ``'<f4'``) as float32; :class:`RiemError` where one is not finite."""
        count = int(np.prod(shape))
        values = np.frombuffer(self._cut(count * np.dtype(dtype).itemsize), dtype).astype(np.float32)
        if not np.isfinite(values).all():
            raise RiemError('payload: expected finite numbers, found NaN or infinity; the file is damaged')
        return torch.from_numpy(values.reshape(shape))

    def integers(self, bits: int, shape: tuple[int, ...]) -> Tensor:
        """Packed integers as uint8."""
        return unpack(self._cut(packed_bytes(int(np.prod(shape)), bits)), bits, shape)

    def _cut(self, size: int) -> bytes:
        piece = bytes(self._payload[self._at : self._at + size])
        self._at += size
        return piece


def float_bytes(values: Tensor, dtype: str) -> bytes:
    """Floats as little-endian bytes of ``dtype`` (``'<f2'`` or ``'<f4'``)."""
    return values.detach().numpy().astype(dtype).tobytes()
