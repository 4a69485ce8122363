"""The compiled decoder gives what the Python beside it gives, of whole streams and of damaged ones."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmriem.core.coding import context, entropy, native, streams, trellis
from mmriem.core.coding.entropy import decode, decode_vector, encode, encode_vector
from mmriem.core.coding.streams import LANES
from mmriem.core.coding.trellis import magnitudes_of
from mmriem.core.errors import RiemError

INT32 = np.iinfo(np.int32)
pytestmark = pytest.mark.skipif(native.module is None, reason='mmriem/core/coding/_decoder.c was not compiled')


def outcome(work):
    try:
        found = work()
    except RiemError as error:
        return str(error)
    return found.dtype, found.shape, found.tobytes()


def same(work):
    """What it comes to, which is the same in Python and compiled."""
    compiled = outcome(work)
    module, native.module = native.module, None
    try:
        assert outcome(work) == compiled
    finally:
        native.module = module
    return compiled


def test_the_format_is_that_of_python():
    compiled = dict(native.module.FORMAT)
    assert compiled.pop('NEXT') == trellis.NEXT.tobytes()
    assert compiled.pop('SHRINKAGES') == len(context.SHRINKAGES)
    assert compiled.pop('WINDOWS') == len(entropy.WINDOWS)
    assert compiled == {name: {**vars(context), **vars(streams)}[name] for name in compiled}


def symbols_of(rows, columns, scale, spread=0.5, seed=0):
    rng = np.random.default_rng(seed)
    scales = scale * np.exp(spread * rng.normal(0, 1, (rows, 1))) * np.exp(spread * rng.normal(0, 1, (1, columns)))
    return np.rint(rng.normal(0, 1, (rows, columns)) * scales).clip(INT32.min, INT32.max).astype(np.int32)


@settings(max_examples=150, deadline=None)
@given(
    st.integers(0, 60),
    st.integers(0, 40),
    st.sampled_from([1, 2, 4, 9, 25, 70]),
    st.floats(0.05, 1e5),
    st.floats(0, 2),
    st.sampled_from([1, LANES]),
    st.integers(0, 1000),
)
def test_matrices(rows, channels, kernel_size, scale, spread, lanes, seed):
    symbols = symbols_of(rows, channels * kernel_size, scale, spread, seed)
    data = encode(symbols, kernel_size, lanes)
    found = same(lambda: decode(data, symbols.shape, kernel_size, lanes))
    assert np.array_equal(np.frombuffer(found[2], found[0]), symbols.reshape(-1))


@pytest.mark.parametrize('lanes', [1, LANES])
@pytest.mark.parametrize(
    ('shape', 'kernel_size'),
    [((1000, 700), 1), ((130, 800 * 9), 9), ((2, 3 * 3000), 3000), ((700, 200), 1), ((1, 9000), 1)],
)
def test_matrices_of_many_tiles(shape, kernel_size, lanes):
    symbols = symbols_of(*shape, 0.8)
    data = encode(symbols, kernel_size, lanes)
    found = same(lambda: decode(data, shape, kernel_size, lanes))
    assert np.array_equal(np.frombuffer(found[2], found[0]), symbols.reshape(-1))


def path(rows, columns, scale, seed=0):
    """Integers that follow a trellis."""
    indices = np.abs(symbols_of(rows, columns, scale, 0.3, seed)).astype(np.int64)
    return magnitudes_of(indices) * np.where(symbols_of(rows, columns, 1.0, 0.0, seed + 1) < 0, -1, 1)


@settings(max_examples=100, deadline=None)
@given(
    st.integers(0, 30),
    st.integers(0, 20),
    st.sampled_from([1, 4, 9]),
    st.floats(0.05, 1e4),
    st.sampled_from([1, LANES]),
    st.integers(0, 1000),
)
def test_matrices_along_a_trellis(rows, channels, kernel_size, scale, lanes, seed):
    symbols = path(rows, channels * kernel_size, scale, seed)
    data = encode(symbols, kernel_size, lanes, True)
    found = same(lambda: decode(data, symbols.shape, kernel_size, lanes, True))
    assert np.array_equal(np.frombuffer(found[2], found[0]), symbols.reshape(-1))


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=300), st.integers(0, 30), st.integers(0, 8), st.sampled_from([1, 9]))
def test_random_bytes_along_a_trellis(data, rows, channels, kernel_size):
    same(lambda: decode(data, (rows, channels * kernel_size), kernel_size, 1, True))


@pytest.mark.parametrize('scale', [0.8, 300.0])
def test_every_flipped_bit_along_a_trellis(scale):
    symbols = path(5, 18, scale)
    data = encode(symbols, 9, 1, True)
    for at in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[at // 8] ^= 1 << at % 8
        same(lambda flipped=bytes(flipped): decode(flipped, symbols.shape, 9, 1, True))


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(INT32.min, INT32.max), max_size=90))
def test_vectors_of_any_integers(values):
    data = encode_vector(np.array(values, np.int64))
    assert np.frombuffer(same(lambda: decode_vector(data, len(values)))[2], np.int32).tolist() == values


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 700), st.floats(0, 30), st.booleans(), st.integers(-100, 100), st.integers(0, 1000))
def test_vectors(count, spread, smooth, offset, seed):
    values = symbols_of(1, count, spread, 0, seed)[0]
    values = offset + (values.cumsum() if smooth else values)
    data = encode_vector(values)
    assert np.array_equal(np.frombuffer(same(lambda: decode_vector(data, count))[2], np.int32), values)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=300), st.integers(0, 30), st.integers(0, 8), st.sampled_from([1, 2, 9, 300]), st.booleans())
def test_random_bytes(data, rows, channels, kernel_size, dealt):
    if dealt and len(data) > 8:
        third = (len(data) // 4).to_bytes(4, 'little')
        data = third * 3 + data
    same(lambda: decode(data, (rows, channels * kernel_size), kernel_size, LANES if dealt else 1))
    same(lambda: decode_vector(data, rows))


@pytest.mark.parametrize(
    ('scale', 'kernel_size', 'lanes'), [(0.8, 9, 1), (300.0, 9, 1), (0.8, 1, LANES), (300.0, 9, LANES)]
)
def test_every_flipped_bit(scale, kernel_size, lanes):
    symbols = symbols_of(5, 18, scale)
    data = encode(symbols, kernel_size, lanes)
    errors = set()
    for at in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[at // 8] ^= 1 << at % 8
        found = same(lambda flipped=bytes(flipped): decode(flipped, symbols.shape, kernel_size, lanes))
        errors |= {found.split(',')[0]} if isinstance(found, str) else set()
    assert len(errors) >= 3


@pytest.mark.parametrize('lanes', [1, LANES])
def test_pieces_of_a_larger_stream(lanes):
    symbols = symbols_of(100, 900, 0.8)
    data = encode(symbols, 9, lanes)
    for piece in (data[:-1], data[1:], data[: len(data) // 2], data[-3000:], data + data, b''):
        assert 'expected' in same(lambda piece=piece: decode(piece, symbols.shape, 9, lanes))


def test_numbers_beyond_32_bits():
    data = encode(np.full((1, 3), INT32.min))
    errors = []
    for at in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[at // 8] ^= 1 << at % 8
        errors.append(same(lambda flipped=bytes(flipped): decode(flipped, (1, 3))))
    assert any('integers of 32 bits' in error for error in errors if isinstance(error, str))


TABLES = np.zeros((context.CLASSES, context.TOKENS)), np.zeros(len(context.SHRINKAGES))


@pytest.mark.parametrize('sizes', [(16, 4, 5, 1), (20, 4, 5, 2), (20, -4, -5, 1), (20, 4, 5, 0)])
def test_buffers_of_other_sizes_are_refused(sizes):
    count, rows, columns, kernel_size = sizes
    with pytest.raises(ValueError, match='other sizes'):
        native.module.matrix((b'\1',), np.empty(count, np.int8), rows, columns, kernel_size, False, *TABLES)


def test_tables_of_other_sizes_and_other_numbers_of_streams_are_refused():
    out = np.empty(20, np.int8)
    for lanes, prior in (((b'\1',), TABLES[0][1:]), ((b'\1',) * 3, TABLES[0]), ((), TABLES[0])):
        with pytest.raises(ValueError, match='other sizes'):
            native.module.matrix(lanes, out, 4, 5, 1, False, prior, TABLES[1])
    windows = np.array(entropy.WINDOWS[1:], np.int64)
    with pytest.raises(ValueError, match='other sizes'):
        native.module.vector((b'\1',), np.empty(3, np.int32), windows, *TABLES)


def test_columns_of_a_matrix_without_rows_take_no_memory():
    out = np.empty(0, np.int8)
    assert native.module.matrix((b'',), out, 0, 1 << 40, 1, False, *TABLES)[0] == native.module.ENDS_ELSEWHERE
