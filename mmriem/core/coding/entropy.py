"""Entropy coding of integer matrices whose rows and columns have scales of their own.

Magnitudes are coded tile by tile. What a symbol is expected to be follows from the tokens decoded before it: their
sums in its row, in its column and among the other positions of its kernel, each drawn to the mean as far as it rests on
few symbols. Symbols of about the same expectation form a class, whose distribution starts as a geometric one and
adapts. Four numbers say how far rows, columns, channels and kernels differ; no other side information is stored.

Everything that decides a distribution is a sum of integers or one elementwise IEEE operation after the other, so the
bytes are the same on every machine.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType

import numpy as np
from constriction import stream

from ..errors import RiemError
from . import native
from .context import (
    _PRIOR,
    _SHRINKAGES,
    DIRECT,
    EXTRA,
    LOW,
    SHRINKAGES,
    TOKENS,
    code_tokens,
    fitted_shrinkages,
    tokens_of,
)
from .streams import _ENDS_ELSEWHERE, BITS_24, Reader, Writer, split_lanes
from .trellis import indices_of, magnitudes_of

SPAN = 1 << 16
"""Integers whose signs are looked up at a time, so that these stay in the cache."""
WINDOWS = (1, 2, 4, 16, 64)
"""Choices for how many integers of a vector predict the next."""
_OTHER_LARGEST = 'integer stream: expected {} as its largest token, found {}; the file is damaged'
_TOO_LARGE = 'integer stream: expected integers of 32 bits, found a larger one; the file is damaged'
_WINDOWS = np.array(WINDOWS, np.int64)


def encode(symbols: np.ndarray, kernel_size: int = 1, lanes: int = 1, trellis: bool = False) -> bytes:
    """The bytes of an integer matrix, which :func:`decode` reads; one byte where every integer is zero.

    Args:
        symbols: ``(rows, channels * kernel_size)``, integers that int32 can hold.
        kernel_size: columns of one input channel, next to each other.
        lanes: streams that the tokens are dealt to, 1 or ``LANES``; the further ones take about 33 bytes.
        trellis: the rows follow paths of the trellis (:mod:`.trellis`), and indices are coded.

    Raises:
        RiemError: an integer that int32 cannot hold, columns that the kernel size does not divide, or rows that follow
            no path.
    """
    symbols = _int32(symbols)
    _check_shape(symbols.shape, kernel_size)
    writer = Writer(lanes)
    magnitudes = np.abs(symbols).view(np.uint32)
    indices = indices_of(magnitudes) if trellis else magnitudes
    if indices is None:
        raise RiemError('integers to code: expected rows that follow paths of the trellis, found others')
    _write(writer, indices, symbols < 0, kernel_size, magnitudes)
    return writer.payload()


def decode(
    data: bytes, shape: tuple[int, int], kernel_size: int = 1, lanes: int = 1, trellis: bool = False
) -> np.ndarray:
    """The matrix that :func:`encode` was given, of ``shape``: int8 where all magnitudes are small, else int32.

    Raises:
        RiemError: the bytes are not those of a matrix of this shape, kernel size, number of lanes and trellis.
    """
    _check_shape(shape, kernel_size)
    payloads = split_lanes(data, lanes)
    if native.module is not None:
        return _native_matrix(native.module, payloads, shape, kernel_size, trellis)
    reader = Reader(payloads)
    magnitudes, negative = _read(reader, shape, kernel_size, trellis)
    reader.finish()
    return _signed(magnitudes, negative).reshape(shape)


def _native_matrix(
    compiled: ModuleType, payloads: tuple[bytes, ...], shape: tuple[int, int], kernel_size: int, trellis: bool
) -> np.ndarray:
    out: np.ndarray = np.empty(shape, np.int8)
    status = compiled.matrix(payloads, out, *shape, kernel_size, trellis, _PRIOR, _SHRINKAGES)
    if status[0] == compiled.WIDE:
        out = np.empty(shape, np.int32)
        status = compiled.matrix(payloads, out, *shape, kernel_size, trellis, _PRIOR, _SHRINKAGES)
    _require_ok(compiled, *status)
    return out


def _require_ok(compiled: ModuleType, status: int, largest: int, found: int) -> None:
    """Raise what the status of a compiled function means."""
    if status == compiled.OTHER_LARGEST:
        raise RiemError(_OTHER_LARGEST.format(largest, found))
    if status == compiled.ENDS_ELSEWHERE:
        raise RiemError(_ENDS_ELSEWHERE)
    if status == compiled.TOO_LARGE:
        raise RiemError(_TOO_LARGE)


def _signed(magnitudes: np.ndarray, negative: np.ndarray) -> np.ndarray:
    """Magnitudes, uint8 or uint32, with their signs, as int8 or int32.

    Raises:
        RiemError: a number that int32 cannot hold.
    """
    minus = negative.astype(magnitudes.dtype, copy=False)
    if magnitudes.dtype == np.uint32 and (magnitudes > (1 << 31) - 1 + minus).any():
        raise RiemError(_TOO_LARGE)
    signed = magnitudes ^ -minus
    signed += minus
    return signed.view(np.int8 if magnitudes.dtype == np.uint8 else np.int32)


def encode_vector(values: np.ndarray) -> bytes:
    """The bytes of a vector of integers, ``(count,)``, which :func:`decode_vector` reads.

    Each is predicted by the mean of those before it, of as many as make the fewest bytes.

    Raises:
        RiemError: an integer that int32 cannot hold.
    """
    integers: list[int] = _int32(values).tolist()
    payloads = []
    for choice, window in enumerate(WINDOWS):
        differences = np.array(
            [x - _mean(integers[max(0, at - window) : at]) for at, x in enumerate(integers)], np.int64
        )
        magnitudes, negative = np.abs(differences).astype(np.uint32), differences < 0
        writer = Writer()
        _code_integer(writer, choice, len(WINDOWS))
        _code_first(writer, magnitudes[:1], negative[:1])
        _write(writer, magnitudes[None, 1:], negative[None, 1:])
        payloads.append(writer.payload())
    return min(payloads, key=len)


def decode_vector(data: bytes, count: int) -> np.ndarray:
    """The vector that :func:`encode_vector` was given: int32 ``(count,)``.

    Raises:
        RiemError: the bytes are not those of a vector of this length.
    """
    payloads = split_lanes(data)
    if native.module is not None:
        out = np.empty(count, np.int32)
        _require_ok(native.module, *native.module.vector(payloads, out, _WINDOWS, _PRIOR, _SHRINKAGES))
        return out
    reader = Reader(payloads)
    window = WINDOWS[_code_integer(reader, 0, len(WINDOWS))]
    first = np.zeros(min(count, 1), np.uint32), np.zeros(min(count, 1), bool)
    _code_first(reader, *first)
    others = _read(reader, (1, max(count - 1, 0)), 1)
    reader.finish()
    magnitudes, negative = (np.append(*pair) for pair in zip(first, others))
    values: list[int] = []
    for difference in np.where(negative, -1, 1) * magnitudes.astype(np.int64):
        values.append(_mean(values[-window:]) + int(difference))
        if not -(1 << 31) <= values[-1] < 1 << 31:
            raise RiemError(_TOO_LARGE)
    return np.array(values, np.int32)


def _mean(values: list[int]) -> int:
    """Rounded; 0 of none."""
    return (2 * sum(values) + len(values)) // (2 * len(values)) if values else 0


def _code_first(coder: Writer | Reader, magnitudes: np.ndarray, negative: np.ndarray) -> None:
    """Codes the first difference of a vector, which says nothing of the others; a reader fills it in."""
    for token in tokens_of(magnitudes):
        token = _code_integer(coder, int(token), TOKENS)
        magnitudes |= LOW[token]
        _code_lower_bits(coder, np.array([token], np.uint8), magnitudes)
        signs = negative[: min(token, 1)]
        signs[:] = _code_flat(coder, signs)


def _write(
    writer: Writer, magnitudes: np.ndarray, negative: np.ndarray, kernel_size: int = 1, signed: np.ndarray | None = None
) -> None:
    """Codes a matrix as magnitudes, uint32, and signs, one where ``signed`` (or else the magnitude) is above 0."""
    tokens = tokens_of(magnitudes)
    largest = int(tokens.max(initial=0))
    _code_integer(writer, largest, TOKENS)
    if largest:
        choices = fitted_shrinkages(tokens.astype(np.int32), kernel_size)[: _choices(len(tokens), kernel_size)]
        for choice in choices:
            _code_integer(writer, choice, len(SHRINKAGES))
        planes = np.ascontiguousarray(tokens.reshape(len(tokens), -1, kernel_size).transpose(2, 0, 1))
        code_tokens(writer, planes, choices, largest + 1)
        tokens = tokens.reshape(-1)
        _code_lower_bits(writer, tokens, magnitudes.reshape(-1))
    signed = magnitudes if signed is None else signed
    _code_flat(writer, _signs_of(signed.reshape(-1), negative.reshape(-1)))


def _read(
    reader: Reader, shape: tuple[int, int], kernel_size: int, trellis: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Magnitudes, uint32, or uint8 where all of them are small, and signs, uint8, of a matrix, flat."""
    rows, columns = shape
    planes = np.zeros((kernel_size, rows, columns // kernel_size), np.uint8)
    largest = _code_integer(reader, 0, TOKENS)
    if largest:
        choices = [_code_integer(reader, 0, len(SHRINKAGES)) for _ in range(_choices(rows, kernel_size))]
        code_tokens(reader, planes, choices, largest + 1)
    tokens = planes.transpose(1, 2, 0).reshape(-1)
    if largest != (found := int(tokens.max(initial=0))):
        raise RiemError(_OTHER_LARGEST.format(largest, found))
    magnitudes = tokens if largest < DIRECT else LOW[tokens]
    _code_lower_bits(reader, tokens, magnitudes)
    if trellis:
        whole = magnitudes_of(magnitudes.reshape(shape).astype(np.int64)).reshape(-1)
        magnitudes = np.minimum(whole, (1 << 32) - 1).astype(magnitudes.dtype)
    signs = _code_flat(reader, np.empty(np.count_nonzero(magnitudes), np.uint8))
    return magnitudes, _with_signs(magnitudes, signs)


def _choices(rows: int, kernel_size: int) -> int:
    """How many shrinkages are stored."""
    if kernel_size > 1:
        return 4
    return 2 if rows > 1 else 0


def _int32(values: np.ndarray) -> np.ndarray:
    """The same integers, contiguous in int32."""
    stored = np.ascontiguousarray(values).astype(np.int32)
    if (stored != values).any():
        raise RiemError('integers to code: expected integers of 32 bits, found a number that is not')
    return stored


def _check_shape(shape: tuple[int, ...], kernel_size: int) -> None:
    if len(shape) != 2 or min(shape) < 0 or kernel_size < 1 or shape[1] % kernel_size:
        raise RiemError(f'integer matrix: expected rows and columns, multiples of {kernel_size}, found {tuple(shape)}')


def _code_integer(coder: Writer | Reader, value: int, count: int) -> int:
    """Codes one of ``0 .. count - 1``, all as likely."""
    return int(coder.code(np.array([value]), stream.model.Uniform(count))[0])


def _code_lower_bits(coder: Writer | Reader, tokens: np.ndarray, magnitudes: np.ndarray) -> None:
    """Codes what the tokens leave open of large magnitudes, one bit each.

    Both are flat: tokens uint8, magnitudes uint32 where any is large, which a reader fills in.
    """
    large = np.flatnonzero(tokens >= DIRECT)
    width = EXTRA[tokens[large]]
    for place in range(width.max(initial=0)):
        which = large[width > place]
        bits = _code_flat(coder, magnitudes[which] >> np.uint32(place) & 1)
        magnitudes[which] |= bits.astype(np.uint32) << np.uint32(place)


def _nonzero(magnitudes: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """Parts of the magnitudes, and where each is above 0: a mask of all of them takes several times as long."""
    for start in range(0, len(magnitudes), SPAN):
        part = slice(start, start + SPAN)
        yield part, np.flatnonzero(magnitudes[part] > 0)


def _signs_of(magnitudes: np.ndarray, negative: np.ndarray) -> np.ndarray:
    """Of the magnitudes above 0."""
    return np.concatenate([negative[:0], *(negative[part][where] for part, where in _nonzero(magnitudes))])


def _with_signs(magnitudes: np.ndarray, signs: np.ndarray) -> np.ndarray:
    """Inverse of :func:`_signs_of`, uint8."""
    negative, start = np.zeros(len(magnitudes), np.uint8), 0
    for part, where in _nonzero(magnitudes):
        negative[part][where] = signs[start : start + len(where)]
        start += len(where)
    return negative


def _code_flat(coder: Writer | Reader, bits: np.ndarray) -> np.ndarray:
    """Codes bits as they are, 24 at a time; uint8 ``(n,)``."""
    if not len(bits):
        return bits
    missing = -len(bits) % 24
    padded = np.append(np.zeros(missing, np.uint8), bits.astype(np.uint8))
    parts = np.packbits(padded).reshape(-1, 3).astype(np.int32)
    chunks = parts[:, 0] << 16 | parts[:, 1] << 8 | parts[:, 2]
    chunks = np.append(
        coder.code(chunks[:1], stream.model.Uniform(1 << 24 - missing)),
        coder.code(chunks[1:], BITS_24),
    )
    coded = np.stack([chunks >> 16, chunks >> 8 & 255, chunks & 255], 1).astype(np.uint8)
    return np.unpackbits(coded.reshape(-1))[missing:]
