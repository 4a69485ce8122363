"""The model of the entropy coder: what a symbol is expected to be, from the symbols decoded before it."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from constriction import stream

from .streams import Reader, Writer

DIRECT = 16
"""Magnitudes below 16 are their own token; larger ones share a token for half an octave and have further bits."""
TOKENS = DIRECT + 2 * 28
"""Number of tokens: two for each octave from ``DIRECT`` to the largest magnitude of 32 bits."""
STEPS = 4
"""Classes of distributions for each octave of the expected magnitude, a power of two."""
OCTAVES = (-8, 6)
"""Binary exponents of the least expected magnitude with a class of its own, and of the greatest."""
CLASSES = STEPS * (OCTAVES[1] - OCTAVES[0])
"""Number of classes of distributions, by the expected magnitude."""
UNIT = 4096
"""Weight of one token in the frequencies of its own class; a quarter of it counts in the classes beside it."""
PRIOR = 12
"""Weight, in tokens, of the geometric distribution that a class starts with."""
RARE = 16
"""Least frequency of a token in a class."""
TILE = 4
"""Rows, and channels, of the first tile of a matrix."""
MOST_ROWS, MOST_CHANNELS = 128, 512
"""Rows and channels of the largest tile of a matrix."""
KERNEL_GROUPS = (1, 3)
"""Sizes of the first groups of positions of a kernel that are coded together, so that the others see what is in it."""
SINGLE = 8
"""Channels of the first tiles whose kernel positions are coded one by one, since little is known yet."""
MOST_SINGLE = 64
"""The most positions of a kernel that are coded one by one."""
POSITION_PRIOR = 32
"""Weight, in tokens, of the assumption that a position of a kernel is as large as the others."""
SHRINKAGES = (2.0, 8.0, 32.0, 128.0, 512.0, 2048.0, 8192.0, 2.0**24)
"""Choices for the weight of the mean, in tokens, against the tokens that were decoded."""
FIXED = SHRINKAGES[-1]
"""The choice of a shrinkage that leaves the mean as it is."""
_STEP_BITS = STEPS.bit_length() - 1
LOW = np.array([*range(DIRECT), *(half << (e - 1) for e in range(4, 32) for half in (2, 3))], np.uint32)
_add = np.add.reduce
EXTRA = np.array([0] * DIRECT + [e - 1 for e in range(4, 32) for _ in range(2)], np.uint8)


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


def tokens_of(magnitudes: np.ndarray) -> np.ndarray:
    """uint32 to uint8 of the same shape."""
    tokens = np.minimum(magnitudes, DIRECT).astype(np.uint8)
    large = magnitudes[magnitudes >= DIRECT]
    exponent = np.frexp(large.astype(np.float64))[1].astype(np.uint32) - 1
    tokens[magnitudes >= DIRECT] = DIRECT + 2 * (exponent - 4) + (large >> (exponent - 1) & 1)
    return tokens


def fitted_shrinkages(tokens: np.ndarray, kernel_size: int) -> list[int]:
    """Which of SHRINKAGES suit rows, columns, channels and kernels; of a kernel size of 1, rows and columns only.

    The weight of the mean is the variance of one symbol over the variance of the expectations (Buehlmann's
    credibility), here from the moments of the whole matrix. All sums are of integers, or exactly rounded.
    """
    count, columns_of = len(tokens), tokens.shape[1]
    rows, columns = (tokens.sum(axis, dtype=np.int64) for axis in (1, 0))
    total, squares = int(rows.sum()), int((tokens * tokens).sum(dtype=np.int64))
    mean = total / tokens.size
    variance = squares / tokens.size - mean * mean

    def weight(deviations: np.ndarray, symbols: int, freedom: float = 1.0) -> float:
        between = math.fsum((deviations * deviations).reshape(-1).tolist()) / deviations.size * freedom
        return _ratio(variance, between - variance / symbols)

    weights = [weight(rows / columns_of - mean, columns_of)]
    if kernel_size == 1:
        weights.append(weight(columns / count - mean, count))
    else:
        kernels = tokens.reshape(count, -1, kernel_size).sum(2, dtype=np.int64)
        channels, positions = (columns.reshape(-1, kernel_size).sum(axis) for axis in (1, 0))
        fit = channels[:, None] * (positions / (total * count))
        weights.append(weight(columns.reshape(-1, kernel_size) / count - fit, count, kernel_size / (kernel_size - 1)))
        weights.append(weight(channels / (count * kernel_size) - mean, count * kernel_size))
        # the squared deviations of kernels in excess of those of independent positions, from the product of row and
        # column
        row_square, column_square, channel_square = (_dot(x, x) for x in (rows, columns, channels))
        apart = squares - (2 * _dot(rows, tokens @ columns) - row_square * column_square / total) / total
        together = (
            _dot(kernels.reshape(-1), kernels.reshape(-1))
            - (2 * _dot(rows, kernels @ channels) - row_square * channel_square / total) / total
        )
        expected = row_square * (channel_square - column_square) / total**2
        weights.append(_ratio(apart / total * expected, together - apart))
    return [sum(weight > 2 * choice for choice in SHRINKAGES[:-1]) for weight in weights]


def _ratio(over: float, under: float) -> float:
    return over / under if under > over * 1e-9 and under > 0 else math.inf


def _dot(left: np.ndarray, right: np.ndarray) -> int:
    return sum(a * b for a, b in zip(left.tolist(), right.tolist()))


def code_tokens(coder: Writer | Reader, planes: np.ndarray, choices: list[int], alphabet: int) -> None:
    """Codes tokens below ``alphabet``, ``(kernel_size, rows, channels)`` uint8; a reader fills them in.

    Args:
        choices: which of SHRINKAGES hold for rows, columns, channels and kernels; where there are fewer, FIXED.
    """
    by_row, by_column, by_channel, by_kernel = (*(SHRINKAGES[choice] for choice in choices), *[FIXED] * 4)[:4]
    kernel_size, rows, channels = planes.shape
    model = _Distributions(coder, alphabet)
    column_sums = np.zeros((kernel_size, channels))
    position_sums, position_counts = [0] * kernel_size, [0] * kernel_size
    for down in _blocks(rows, MOST_ROWS, 2):
        row_sums, strip_sum, strip_count = np.zeros(down.stop - down.start), 0.0, 0
        for across in _blocks(channels, MOST_CHANNELS, 4 if down.start else 2):
            kernel_sums = np.zeros((len(row_sums), across.stop - across.start), np.float32)
            sums = column_sums[:, across]
            for positions in _kernel_groups(kernel_size, down.start, across.start, by_kernel):
                mean = (sum(position_sums) + 1) / (sum(position_counts) + 2)
                pairs = zip(position_sums, position_counts)
                scales = [(total / mean + POSITION_PRIOR) / (count + POSITION_PRIOR) for total, count in pairs]
                seen = [down.stop] * positions.start + [down.start] * (kernel_size - positions.start)
                weight = 0.0
                for count, scale in zip(seen, scales):  # from 3.12 on, the sum of Python is another one for floats
                    weight += count * scale
                weight += by_channel
                channel = (_add(sums) + by_channel * mean) / weight
                before = slice(positions.start if by_kernel == FIXED else 0, positions.stop)
                column = sums[before] + np.array([[by_column * scale] for scale in scales[before]]) * channel
                column /= np.array([[count + by_column] for count in seen[before]])
                column = column.astype(np.float32)
                if strip_sum:
                    row = (row_sums * (down.stop * strip_count / strip_sum) + by_row) / (strip_count + by_row)
                    row = row.astype(np.float32)[:, None]
                else:
                    row = np.ones((len(row_sums), 1), np.float32)
                expected = row * column[positions.start - positions.stop :, None]
                if positions.start and by_kernel != FIXED:
                    # the sum of Python adds one row after the other, an order that numpy does not promise for floats
                    usual = row * sum(column[: positions.start])
                    usual += np.float32(by_kernel)
                    expected *= (kernel_sums + np.float32(by_kernel)) / usual
                tokens = planes[positions, down, across]
                model.code(tokens, expected)
                found = tokens.astype(np.int32)
                kernels, columns = _add(found, 0, np.int32), _add(found, 1, np.int32)
                row_sums += _add(kernels, 1, np.int32)
                if by_kernel != FIXED:
                    kernel_sums += kernels.astype(np.float32)
                sums[positions] += columns
                for position, total in enumerate(_add(columns, 1).tolist(), positions.start):
                    position_sums[position] += total
                    position_counts[position] += kernels.size
                # of the columns that this strip has, all rows down to its end
                strip_sum += float(_add(sums[positions], None))
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


def _kernel_groups(kernel_size: int, top: int, left: int, by_kernel: float) -> Iterator[slice]:
    """Cuts a kernel into positions that are coded together in the tile at row ``top`` and channel ``left``."""
    sizes: tuple[int, ...] = (*KERNEL_GROUPS, kernel_size)
    if top == 0 and left < SINGLE:
        sizes = (1,) * min(kernel_size, MOST_SINGLE) + (kernel_size,)
    elif top and by_kernel == FIXED:
        sizes = (kernel_size,)
    start = 0
    for size in sizes:
        if start < kernel_size:
            yield slice(start, min(start + size, kernel_size))
        start += size


class _Distributions:
    """The frequencies of the tokens in each class, which adapt to what was coded."""

    def __init__(self, coder: Writer | Reader, alphabet: int) -> None:
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
