"""Entropy coding of integer matrices whose rows and columns have scales of their own.

Magnitudes are coded tile by tile. What a symbol is expected to be follows from the tokens decoded before it: their
sums in its row, in its column and among the other taps of its kernel, each drawn to the mean as far as it rests on
few symbols. Symbols of about the same expectation form a class, whose distribution starts as a geometric one and
adapts. Four numbers say how far rows, columns, channels and kernels differ; no other side information is stored.

Everything that decides a distribution is a sum of integers or one elementwise IEEE operation after the other, so the
bytes are the same on every machine.
"""

from __future__ import annotations

import itertools
import math
import struct
from collections.abc import Iterator

import numpy as np
from constriction import stream

from . import native
from . import trellis as paths
from .errors import RiemError

DIRECT = 16
"""Magnitudes below are their own token; larger ones share a token for half an octave and have further bits."""
TOKENS = DIRECT + 2 * 28
STEPS = 4
"""Classes for each octave of the expected magnitude, a power of two."""
OCTAVES = (-8, 6)
CLASSES = STEPS * (OCTAVES[1] - OCTAVES[0])
UNIT = 4096
"""Weight of one symbol in the frequencies of its own class; a quarter of it counts in the classes beside it."""
PRIOR = 12
"""Symbols that the geometric distribution stands for in each class."""
RARE = 16
"""Frequency that every token has, however unlikely."""
TILE = 4
"""Rows and channels of the first tile."""
MOST_ROWS, MOST_CHANNELS = 128, 512
"""Rows and channels of the largest tile."""
TAPS = (1, 3)
"""Sizes of the first groups of taps that are coded together, so that the others see what is in their kernel."""
SINGLE = 8
"""Channels of the first rows whose taps are coded one by one, since little is known yet."""
SHRINKAGES = (2.0, 8.0, 32.0, 128.0, 512.0, 2048.0, 8192.0, 2.0**24)
"""Choices for the weight of the mean, in symbols, against what was decoded."""
FIXED = SHRINKAGES[-1]
"""The choice that leaves the mean as it is."""
SPAN = 1 << 16
"""Integers whose signs are looked up at a time, so that these stay in the cache."""
WINDOWS = (1, 2, 4, 16, 64)
"""Choices for how many integers of a vector predict the next."""
LANES = 4
"""Streams that the tokens of a large matrix are dealt to: a processor works on them side by side."""
_LENGTHS = struct.Struct('<III')  # bytes of each stream but the last

_BITS_24 = stream.model.Uniform(1 << 24)
_ENDS_ELSEWHERE = 'integer stream: expected its end after the last integer, found it elsewhere; the file is damaged'
_OTHER_LARGEST = 'integer stream: expected {} as its largest token, found {}; the file is damaged'
_TOO_LARGE = 'integer stream: expected integers of 32 bits, found a larger one; the file is damaged'
_STEP_BITS = STEPS.bit_length() - 1
_LOW = np.array([*range(DIRECT), *(half << (e - 1) for e in range(4, 32) for half in (2, 3))], np.uint32)
_add = np.add.reduce
_EXTRA = np.array([0] * DIRECT + [e - 1 for e in range(4, 32) for _ in range(2)], np.uint8)


def _geometric() -> np.ndarray:
    """Integer frequencies of the tokens in each class, ``(CLASSES, TOKENS)`` float64, which sum to about PRIOR."""
    octave, step = np.divmod(np.arange(CLASSES), STEPS)
    mean = np.ldexp(1 + (step + 0.5) / STEPS, octave + OCTAVES[0])
    ratio = mean / (1 + mean)
    above = [np.ones(CLASSES)]
    for _ in range(DIRECT):
        above.append(above[-1] * ratio)
    power, half = above[DIRECT], above[DIRECT // 2]
    while len(above) < TOKENS:
        above += [power * half, power * power]
        power, half = above[-1], power
    above[TOKENS:] = [np.zeros(CLASSES)]
    return np.rint(PRIOR * UNIT * -np.diff(above, axis=0).T) + RARE


_PRIOR = np.ascontiguousarray(_geometric())
_SHRINKAGES = np.array(SHRINKAGES)
_WINDOWS = np.array(WINDOWS, np.int64)


class _Writer:
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
    coder.encode_reverse(np.array([1], np.int32), _BITS_24)
    for symbols, model in reversed(calls):
        coder.encode_reverse(symbols, model)
    return coder.get_compressed().astype('<u4').tobytes().rstrip(b'\0')


class _Reader:
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
            if coder.decode(_BITS_24) != 1 or not coder.is_empty():
                raise RiemError(_ENDS_ELSEWHERE)


def _payloads(data: bytes, lanes: int = 1) -> tuple[bytes, ...]:
    """Those of the streams in the bytes."""
    parts = (data,)
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


def encode(symbols: np.ndarray, period: int = 1, lanes: int = 1, trellis: bool = False) -> bytes:
    """The bytes of an integer matrix, which :func:`decode` reads; one byte where every integer is zero.

    Args:
        symbols: ``(rows, channels * period)``, integers that int32 can hold.
        period: columns of one input channel, the taps of its kernel, next to each other.
        lanes: streams that the tokens are dealt to, 1 or ``LANES``; the further ones take about 33 bytes.
        trellis: the rows follow paths of :mod:`mmriem.core.trellis`, and halves of the magnitudes are coded.

    Raises:
        RiemError: an integer that int32 cannot hold, columns that the period does not divide, or rows that follow no
            path.
    """
    symbols = _int32(symbols)
    _check_shape(symbols.shape, period)
    writer = _Writer(lanes)
    sizes = np.abs(symbols).view(np.uint32)
    halves = paths.halves(sizes) if trellis else sizes
    if halves is None:
        raise RiemError('integers to code: expected rows that follow paths of the trellis, found others')
    _write(writer, halves, symbols < 0, period, sizes)
    return writer.payload()


def decode(data: bytes, shape: tuple[int, int], period: int = 1, lanes: int = 1, trellis: bool = False) -> np.ndarray:
    """The matrix that :func:`encode` was given, of ``shape``: int8 where all magnitudes are small, else int32.

    Raises:
        RiemError: the bytes are not those of a matrix of this shape, period, number of lanes and trellis.
    """
    _check_shape(shape, period)
    payloads = _payloads(data, lanes)
    if native.module is not None:
        return _native_matrix(payloads, shape, period, trellis)
    reader = _Reader(payloads)
    magnitudes, negative = _read(reader, shape, period, trellis)
    reader.finish()
    return _signed(magnitudes, negative).reshape(shape)


def _native_matrix(payloads: tuple[bytes, ...], shape: tuple[int, int], period: int, trellis: bool) -> np.ndarray:
    out = np.empty(shape, np.int8)
    status = native.module.matrix(payloads, out, *shape, period, trellis, _PRIOR, _SHRINKAGES)
    if status[0] == native.module.WIDE:
        out = np.empty(shape, np.int32)
        status = native.module.matrix(payloads, out, *shape, period, trellis, _PRIOR, _SHRINKAGES)
    _require_ok(*status)
    return out


def _require_ok(status: int, largest: int, found: int) -> None:
    """Raise what the status of a compiled function means."""
    if status == native.module.OTHER_LARGEST:
        raise RiemError(_OTHER_LARGEST.format(largest, found))
    if status == native.module.ENDS_ELSEWHERE:
        raise RiemError(_ENDS_ELSEWHERE)
    if status == native.module.TOO_LARGE:
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
    values = _int32(values).tolist()
    payloads = []
    for choice, window in enumerate(WINDOWS):
        differences = np.array([x - _mean(values[max(0, at - window) : at]) for at, x in enumerate(values)], np.int64)
        magnitudes, negative = np.abs(differences).astype(np.uint32), differences < 0
        writer = _Writer()
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
    payloads = _payloads(data)
    if native.module is not None:
        out = np.empty(count, np.int32)
        _require_ok(*native.module.vector(*payloads, out, _WINDOWS, _PRIOR, _SHRINKAGES))
        return out
    reader = _Reader(payloads)
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


def _code_first(coder: _Writer | _Reader, magnitudes: np.ndarray, negative: np.ndarray) -> None:
    """Codes the first difference of a vector, which says nothing of the others; a reader fills it in."""
    for token in _tokens(magnitudes):
        token = _code_integer(coder, int(token), TOKENS)
        magnitudes |= _LOW[token]
        _code_lower_bits(coder, np.array([token], np.uint8), magnitudes)
        signs = negative[: min(token, 1)]
        signs[:] = _code_flat(coder, signs)


def _write(
    writer: _Writer, magnitudes: np.ndarray, negative: np.ndarray, period: int = 1, signed: np.ndarray | None = None
) -> None:
    """Codes a matrix as magnitudes, uint32, and signs, one where ``signed`` (or else the magnitude) is above 0."""
    tokens = _tokens(magnitudes)
    largest = int(tokens.max(initial=0))
    _code_integer(writer, largest, TOKENS)
    if largest:
        choices = _shrinkages(tokens.astype(np.int32), period)[: _choices(len(tokens), period)]
        for choice in choices:
            _code_integer(writer, choice, len(SHRINKAGES))
        planes = np.ascontiguousarray(tokens.reshape(len(tokens), -1, period).transpose(2, 0, 1))
        _code_tokens(writer, planes, choices, largest + 1)
        tokens = tokens.reshape(-1)
        _code_lower_bits(writer, tokens, magnitudes.reshape(-1))
    signed = magnitudes if signed is None else signed
    _code_flat(writer, _signs_of(signed.reshape(-1), negative.reshape(-1)))


def _read(reader: _Reader, shape: tuple[int, int], period: int, trellis: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Magnitudes, uint32, or uint8 where all of them are small, and signs, uint8, of a matrix, flat."""
    rows, columns = shape
    planes = np.zeros((period, rows, columns // period), np.uint8)
    largest = _code_integer(reader, 0, TOKENS)
    if largest:
        choices = [_code_integer(reader, 0, len(SHRINKAGES)) for _ in range(_choices(rows, period))]
        _code_tokens(reader, planes, choices, largest + 1)
    tokens = planes.transpose(1, 2, 0).reshape(-1)
    if largest != (found := int(tokens.max(initial=0))):
        raise RiemError(_OTHER_LARGEST.format(largest, found))
    magnitudes = tokens if largest < DIRECT else _LOW[tokens]
    _code_lower_bits(reader, tokens, magnitudes)
    if trellis:
        sizes = paths.sizes(magnitudes.reshape(shape).astype(np.int64)).reshape(-1)
        magnitudes = np.minimum(sizes, (1 << 32) - 1).astype(magnitudes.dtype)
    signs = _code_flat(reader, np.empty(np.count_nonzero(magnitudes), np.uint8))
    return magnitudes, _with_signs(magnitudes, signs)


def _choices(rows: int, period: int) -> int:
    """How many shrinkages are stored."""
    if period > 1:
        return 4
    return 2 if rows > 1 else 0


def _int32(values: np.ndarray) -> np.ndarray:
    """The same integers, contiguous in int32."""
    stored = np.ascontiguousarray(values).astype(np.int32)
    if (stored != values).any():
        raise RiemError('integers to code: expected integers of 32 bits, found a number that is not')
    return stored


def _check_shape(shape: tuple[int, ...], period: int) -> None:
    if len(shape) != 2 or min(shape) < 0 or period < 1 or shape[1] % period:
        raise RiemError(f'integer matrix: expected rows and columns, multiples of {period}, found {tuple(shape)}')


def _tokens(magnitudes: np.ndarray) -> np.ndarray:
    """uint32 to uint8 of the same shape."""
    tokens = np.minimum(magnitudes, DIRECT).astype(np.uint8)
    large = magnitudes[magnitudes >= DIRECT]
    exponent = np.frexp(large.astype(np.float64))[1].astype(np.uint32) - 1
    tokens[magnitudes >= DIRECT] = DIRECT + 2 * (exponent - 4) + (large >> (exponent - 1) & 1)
    return tokens


def _shrinkages(sizes: np.ndarray, period: int) -> list[int]:
    """Which of SHRINKAGES suit rows, columns, channels and kernels; of a period 1, rows and columns only.

    The weight of the mean is the variance of one symbol over the variance of the expectations (Buehlmann's
    credibility), here from the moments of the whole matrix. All sums are of integers, or exactly rounded.
    """
    count, columns_of = len(sizes), sizes.shape[1]
    rows, columns = (sizes.sum(axis, dtype=np.int64) for axis in (1, 0))
    total, squares = int(rows.sum()), int((sizes * sizes).sum(dtype=np.int64))
    mean = total / sizes.size
    variance = squares / sizes.size - mean * mean

    def weight(deviations: np.ndarray, symbols: int, freedom: float = 1.0) -> float:
        between = math.fsum((deviations * deviations).reshape(-1).tolist()) / deviations.size * freedom
        return _ratio(variance, between - variance / symbols)

    weights = [weight(rows / columns_of - mean, columns_of)]
    if period == 1:
        weights.append(weight(columns / count - mean, count))
    else:
        kernels = sizes.reshape(count, -1, period).sum(2, dtype=np.int64)
        channels, taps = (columns.reshape(-1, period).sum(axis) for axis in (1, 0))
        fit = channels[:, None] * (taps / (total * count))
        weights.append(weight(columns.reshape(-1, period) / count - fit, count, period / (period - 1)))
        weights.append(weight(channels / (count * period) - mean, count * period))
        # the squared deviations of kernels in excess of those of independent taps, from the product of row and column
        row_square, column_square, channel_square = (_dot(x, x) for x in (rows, columns, channels))
        apart = squares - (2 * _dot(rows, sizes @ columns) - row_square * column_square / total) / total
        together = _dot(kernels.reshape(-1), kernels.reshape(-1))
        together -= (2 * _dot(rows, kernels @ channels) - row_square * channel_square / total) / total
        expected = row_square * (channel_square - column_square) / total**2
        weights.append(_ratio(apart / total * expected, together - apart))
    return [sum(weight > 2 * choice for choice in SHRINKAGES[:-1]) for weight in weights]


def _ratio(over: float, under: float) -> float:
    return over / under if under > over * 1e-9 and under > 0 else math.inf


def _dot(left: np.ndarray, right: np.ndarray) -> int:
    return sum(a * b for a, b in zip(left.tolist(), right.tolist()))


def _code_tokens(coder: _Writer | _Reader, planes: np.ndarray, choices: list[int], alphabet: int) -> None:
    """Codes tokens below ``alphabet``, ``(period, rows, channels)`` uint8; a reader fills them in.

    Args:
        choices: which of SHRINKAGES hold for rows, columns, channels and kernels; where there are fewer, FIXED.
    """
    by_row, by_column, by_channel, by_kernel = (*(SHRINKAGES[choice] for choice in choices), *[FIXED] * 4)[:4]
    period, rows, channels = planes.shape
    model = _Distributions(coder, alphabet)
    column_sums = np.zeros((period, channels))
    tap_sums, tap_counts = [0] * period, [0] * period
    for down in _blocks(rows, MOST_ROWS, 2):
        row_sums, strip_sum, strip_count = np.zeros(down.stop - down.start), 0.0, 0
        for across in _blocks(channels, MOST_CHANNELS, 4 if down.start else 2):
            kernel_sums = np.zeros((len(row_sums), across.stop - across.start), np.float32)
            sums = column_sums[:, across]
            for taps in _tap_groups(period, down.start, across.start, by_kernel):
                mean = (sum(tap_sums) + 1) / (sum(tap_counts) + 2)
                scales = [(total / mean + 32) / (count + 32) for total, count in zip(tap_sums, tap_counts)]
                seen = [down.stop] * taps.start + [down.start] * (period - taps.start)
                weight = 0.0
                for count, scale in zip(seen, scales):  # from 3.12 on, the sum of Python is another one for floats
                    weight += count * scale
                weight += by_channel
                channel = (_add(sums) + by_channel * mean) / weight
                before = slice(taps.start if by_kernel == FIXED else 0, taps.stop)
                column = sums[before] + np.array([[by_column * scale] for scale in scales[before]]) * channel
                column /= np.array([[count + by_column] for count in seen[before]])
                column = column.astype(np.float32)
                if strip_sum:
                    row = (row_sums * (down.stop * strip_count / strip_sum) + by_row) / (strip_count + by_row)
                    row = row.astype(np.float32)[:, None]
                else:
                    row = np.ones((len(row_sums), 1), np.float32)
                expected = row * column[taps.start - taps.stop :, None]
                if taps.start and by_kernel != FIXED:
                    # the sum of Python adds one row after the other, an order that numpy does not promise for floats
                    usual = row * sum(column[: taps.start])
                    usual += np.float32(by_kernel)
                    expected *= (kernel_sums + np.float32(by_kernel)) / usual
                tokens = planes[taps, down, across]
                model.code(tokens, expected)
                found = tokens.astype(np.int32)
                kernels, columns = _add(found, 0, np.int32), _add(found, 1, np.int32)
                row_sums += _add(kernels, 1, np.int32)
                if by_kernel != FIXED:
                    kernel_sums += kernels.astype(np.float32)
                sums[taps] += columns
                for tap, total in enumerate(_add(columns, 1).tolist(), taps.start):
                    tap_sums[tap] += total
                    tap_counts[tap] += kernels.size
                # of the columns that this strip has, all rows down to its end
                strip_sum += float(_add(sums[taps], None))
                strip_count += columns.size


def _blocks(count: int, largest: int, growth: int) -> Iterator[slice]:
    """Cuts ``0 .. count`` into blocks that grow from TILE to ``largest``."""
    start = 0
    while start < count:
        stop = max(TILE, min(growth * start, start + largest))
        if count - stop < (stop - start) // 2:
            stop = count
        yield slice(start, stop)
        start = stop


def _tap_groups(period: int, top: int, left: int, by_kernel: float) -> Iterator[slice]:
    """Cuts ``0 .. period`` into the taps that are coded together in the tile at row ``top`` and channel ``left``."""
    sizes = (*TAPS, period)
    if top == 0 and left < SINGLE:
        sizes = (1,) * min(period, 64) + (period,)
    elif top and by_kernel == FIXED:
        sizes = (period,)
    start = 0
    for size in sizes:
        if start < period:
            yield slice(start, min(start + size, period))
        start += size


class _Distributions:
    """The frequencies of the tokens in each class, which adapt to what was coded."""

    def __init__(self, coder: _Writer | _Reader, alphabet: int) -> None:
        self._coder = coder
        self._alphabet = alphabet
        self._prior = _PRIOR[:, :alphabet]
        self._counts = np.zeros((CLASSES + 2, alphabet))  # with an empty class at either end

    def code(self, tokens: np.ndarray, expected: np.ndarray) -> None:
        """Codes tokens, uint8, whose expected magnitudes are float32 of the same shape; a reader fills them in."""
        classes = _classes(expected).reshape(-1)
        flat = tokens.reshape(-1)
        first, last = int(np.minimum.reduce(classes)), int(np.maximum.reduce(classes))
        counts = self._counts[first : last + 3]
        frequencies = UNIT * counts[1:-1] + UNIT // 4 * (counts[:-2] + counts[2:]) + self._prior[first : last + 1]
        for number, frequency in enumerate(frequencies, first):
            where = (classes == number).nonzero()[0] if first < last else slice(None)
            symbols = flat[where]
            if len(symbols):
                part = self._coder.deal(symbols, stream.model.Categorical(frequency, perfect=False))
                self._counts[number + 1] += np.bincount(part, minlength=self._alphabet)
                flat[where] = part.astype(np.uint8)
        tokens[...] = flat.reshape(tokens.shape)


def _classes(expected: np.ndarray) -> np.ndarray:
    """Classes of expected magnitudes, float32 to uint8: the exponent and the leading bits of the float."""
    classes = expected.view(np.int32) >> 23 - _STEP_BITS
    classes -= STEPS * (127 + OCTAVES[0])
    np.maximum(classes, 0, out=classes)
    np.minimum(classes, CLASSES - 1, out=classes)
    return classes.astype(np.uint8)


def _code_integer(coder: _Writer | _Reader, value: int, count: int) -> int:
    """Codes one of ``0 .. count - 1``, all as likely."""
    return int(coder.code(np.array([value]), stream.model.Uniform(count))[0])


def _code_lower_bits(coder: _Writer | _Reader, tokens: np.ndarray, magnitudes: np.ndarray) -> None:
    """Codes what the tokens leave open of large magnitudes, one bit each.

    Both are flat: tokens uint8, magnitudes uint32 where any is large, which a reader fills in.
    """
    large = np.flatnonzero(tokens >= DIRECT)
    width = _EXTRA[tokens[large]]
    for place in range(width.max(initial=0)):
        which = large[width > place]
        bits = _code_flat(coder, magnitudes[which] >> np.uint32(place) & 1)
        magnitudes[which] |= bits.astype(np.uint32) << np.uint32(place)


def _nonzero(sizes: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """Parts of the sizes, and where they are above 0 in each: a mask of all of them takes several times as long."""
    for start in range(0, len(sizes), SPAN):
        part = slice(start, start + SPAN)
        yield part, np.flatnonzero(sizes[part] > 0)


def _signs_of(sizes: np.ndarray, negative: np.ndarray) -> np.ndarray:
    """Of the sizes above 0."""
    return np.concatenate([negative[:0], *(negative[part][where] for part, where in _nonzero(sizes))])


def _with_signs(sizes: np.ndarray, signs: np.ndarray) -> np.ndarray:
    """Inverse of :func:`_signs_of`, uint8."""
    negative, start = np.zeros(len(sizes), np.uint8), 0
    for part, where in _nonzero(sizes):
        negative[part][where] = signs[start : start + len(where)]
        start += len(where)
    return negative


def _code_flat(coder: _Writer | _Reader, bits: np.ndarray) -> np.ndarray:
    """Codes bits as they are, 24 at a time; uint8 ``(n,)``."""
    if not len(bits):
        return bits
    missing = -len(bits) % 24
    padded = np.append(np.zeros(missing, np.uint8), bits.astype(np.uint8))
    parts = np.packbits(padded).reshape(-1, 3).astype(np.int32)
    chunks = parts[:, 0] << 16 | parts[:, 1] << 8 | parts[:, 2]
    chunks = np.append(
        coder.code(chunks[:1], stream.model.Uniform(1 << 24 - missing)),
        coder.code(chunks[1:], _BITS_24),
    )
    parts = np.stack([chunks >> 16, chunks >> 8 & 255, chunks & 255], 1).astype(np.uint8)
    return np.unpackbits(parts.reshape(-1))[missing:]
