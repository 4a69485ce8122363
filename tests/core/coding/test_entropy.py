"""Entropy coding: what comes back, how few bytes it takes, and what damaged bytes do."""

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmriem.core.coding.context import DIRECT
from mmriem.core.coding.entropy import SPAN, decode, decode_vector, encode, encode_vector
from mmriem.core.coding.streams import LANES
from mmriem.core.errors import RiemError

INT32 = np.iinfo(np.int32)
GOLDEN_9 = 'a7ffda0b00974ef9947eaf9e7918704cf9eaafe752a890d2e7a80b6c353b0cb91b7ff85fd6f7ffff3d2a624961'
GOLDEN_1 = 'a7ffda0bf65381d971cdac17dd0a7c818c002c75742d57fa97e16b14a52d4a8bed657ade51cd6207381f4001'
GOLDEN_VECTOR = '61f6c422c8de770a4a58920f17f0f63361bb97fb74adff7acf0c02348aca'
GOLDEN_LARGE = '60ac5366aee0c75444a5fa4ede7f2e9da6b90e28e70e7e96bfd31c2c036dee80'


def order_0_bytes(symbols):
    counts = np.unique(symbols, return_counts=True)[1]
    return -(counts * np.log2(counts / symbols.size)).sum() / 8


def normal(rows, columns, scale, seed=0):
    """Rounded normal numbers; ``scale`` is one number or broadcasts to the matrix."""
    return np.rint(np.random.default_rng(seed).normal(0, 1, (rows, columns)) * scale).astype(np.int32)


def log_normal(*shape, spread, seed):
    return np.exp(spread * np.random.default_rng(seed).normal(0, 1, shape))


def pattern(rows, columns):
    """Integers of a formula, mostly small, with a few large ones."""
    at = np.arange(rows)[:, None] * 31 + np.arange(columns) * 17
    values = (at * at % 101 % 7 - 3) // (1 + np.arange(columns) % 3)
    values[at % 97 == 0] = 1000
    return values


def check(symbols, kernel_size=1):
    data = encode(symbols, kernel_size)
    back = decode(data, symbols.shape, kernel_size)
    assert back.dtype == (np.int8 if np.abs(symbols.astype(np.int64)).max(initial=0) < DIRECT else np.int32)
    assert back.shape == symbols.shape
    assert np.array_equal(back, symbols)
    return data


# ---- round trips


@settings(max_examples=150, deadline=None)
@given(
    st.integers(0, 40),
    st.integers(0, 20),
    st.sampled_from([1, 2, 4, 9, 25]),
    st.floats(0.05, 3000),
    st.floats(0, 2),
    st.integers(0, 1000),
)
def test_every_matrix_comes_back(rows, channels, kernel_size, scale, spread, seed):
    columns = channels * kernel_size
    scales = (
        scale * log_normal(rows, 1, spread=spread, seed=seed) * log_normal(1, columns, spread=spread, seed=seed + 1)
    )
    check(normal(rows, columns, scales, seed), kernel_size)


@settings(max_examples=100, deadline=None)
@given(st.data(), st.integers(1, 6), st.integers(1, 6), st.sampled_from([1, 3]))
def test_every_integer_of_32_bits_comes_back(data, rows, channels, kernel_size):
    size = rows * channels * kernel_size
    values = data.draw(st.lists(st.integers(INT32.min, INT32.max), min_size=size, max_size=size))
    check(np.array(values, np.int64).reshape(rows, channels * kernel_size), kernel_size)


@pytest.mark.parametrize('size', [15, 16, 17, 23, 24, 31, 32, 1000, 2**16, 2**30, INT32.max])
def test_integers_at_the_edges_of_the_tokens(size):
    near = np.array([size - 1, size, min(size + 1, INT32.max), 0, 1])
    check(np.stack([near, -near]))


@pytest.mark.parametrize(('shape', 'kernel_size'), [((300, 1300), 1), ((130, 600 * 9), 9), ((3, 7 * 200), 200)])
def test_matrices_of_many_tiles(shape, kernel_size):
    check(normal(*shape, 0.6), kernel_size)


def test_types_and_layout_do_not_matter():
    symbols = normal(20, 36, 2.0)
    data = encode(symbols, 9)
    for same in (symbols.astype(np.int64), symbols.astype(np.int8), np.asfortranarray(symbols), symbols.astype(float)):
        assert encode(same, 9) == data


def test_symbols_are_left_alone():
    symbols = normal(20, 30, 20.0)
    before = symbols.copy()
    encode(symbols)
    assert np.array_equal(symbols, before)


@pytest.mark.parametrize('value', [1, -1, 3, 40, INT32.min, INT32.max])
def test_a_constant_matrix(value):
    check(np.full((30, 36), value), 9)


@pytest.mark.parametrize('shape', [(0, 0), (0, 9), (9, 0), (1, 9), (1000, 900)])
def test_zeros_take_one_byte(shape):
    assert len(encode(np.zeros(shape, np.int8))) == 1


@pytest.mark.parametrize(('shape', 'kernel_size'), [((300, 1300), 1), ((64, 576), 9), ((0, 9), 9), ((1, 3), 1)])
@pytest.mark.parametrize('scale', [0.6, 40.0])
def test_lanes_hold_the_same_in_a_few_bytes_more(shape, kernel_size, scale):
    symbols = normal(*shape, scale)
    dealt, plain = encode(symbols, kernel_size, LANES), encode(symbols, kernel_size)
    assert np.array_equal(decode(dealt, shape, kernel_size, LANES), symbols)
    assert 0 < len(dealt) - len(plain) < 40


# ---- sizes


@pytest.mark.parametrize('scale', [0.4, 0.7, 1.5, 4.0])
@pytest.mark.parametrize(('shape', 'kernel_size'), [((16, 144), 9), ((144, 48), 1), ((64, 576), 9), ((500, 600), 1)])
def test_independent_symbols_take_their_entropy(shape, kernel_size, scale):
    symbols = normal(*shape, scale)
    assert len(check(symbols, kernel_size)) <= 1.02 * order_0_bytes(symbols) + 16


@pytest.mark.parametrize(('by_row', 'by_column'), [(0.8, 0.0), (0.0, 0.8), (0.8, 0.8)])
@pytest.mark.parametrize(('shape', 'kernel_size'), [((64, 576), 9), ((64, 576), 1), ((200, 200), 1)])
def test_scales_of_rows_and_columns_are_learnt(shape, kernel_size, by_row, by_column):
    rows, columns = shape
    scales = log_normal(rows, 1, spread=by_row, seed=1) * log_normal(1, columns, spread=by_column, seed=2)
    symbols = normal(rows, columns, 0.8 * scales)
    # the entropy of the rounded normal numbers is what it takes where all scales are known
    known = entropy_of_normal(0.8 * np.broadcast_to(scales, shape)).sum() / 8
    size = len(check(symbols, kernel_size))
    saved = order_0_bytes(symbols) - known
    assert known < size < order_0_bytes(symbols) - 0.6 * saved


def entropy_of_normal(scales):
    """Bits of a rounded normal number, by numerical integration on a grid of scales."""
    grid = np.geomspace(0.01, 100, 400)
    fine = np.linspace(-0.5, 0.5, 101)[:-1] + 0.005
    level = np.arange(-400, 401)
    bits = []
    for scale in grid:
        p = np.exp(-(((level[:, None] + fine) / scale) ** 2) / 2).mean(1)
        p = p[p > 1e-30] / p.sum()
        bits.append(-(p * np.log2(p)).sum())
    return np.interp(np.log(scales), np.log(grid), bits)


def test_scales_of_kernels_are_learnt():
    kernels = log_normal(64, 64, spread=1.0, seed=3).repeat(9, 1)
    symbols = normal(64, 576, 0.8 * kernels)
    with_kernels, without = len(check(symbols, 9)), len(check(symbols, 1))
    assert with_kernels < 0.95 * order_0_bytes(symbols)
    assert with_kernels < 0.95 * without


def test_scales_of_kernel_positions_are_learnt_in_a_small_matrix():
    positions = np.tile([0.1, 0.5, 0.1, 0.5, 2.0, 0.5, 0.1, 0.5, 0.1], 16)
    symbols = normal(16, 144, positions)
    assert len(check(symbols, 9)) < 0.85 * order_0_bytes(symbols)


def test_rare_large_integers_cost_little():
    symbols = normal(64, 576, 0.5)
    plain = len(check(symbols, 9))
    rng = np.random.default_rng(5)
    symbols[rng.integers(0, 64, 40), rng.integers(0, 576, 40)] = rng.integers(-5000, 5000, 40)
    assert len(check(symbols, 9)) < plain + 40 * 8


def test_more_signs_than_are_looked_up_at_a_time():
    symbols = normal(3, SPAN, 1.5, seed=4)
    symbols[1] = 0
    check(symbols)


# ---- the same bytes everywhere


def test_golden_bytes():
    assert encode(pattern(6, 18), 9).hex() == GOLDEN_9
    assert encode(pattern(6, 18), 1).hex() == GOLDEN_1
    assert np.array_equal(decode(bytes.fromhex(GOLDEN_9), (6, 18), 9), pattern(6, 18))


def test_golden_bytes_of_a_vector():
    vector = (np.arange(60) * 7 % 11 + np.arange(60) // 5) - 30
    assert encode_vector(vector).hex() == GOLDEN_VECTOR
    assert np.array_equal(decode_vector(bytes.fromhex(GOLDEN_VECTOR), 60), vector)


def test_golden_hash_of_a_larger_matrix():
    data = check(pattern(150, 630), 9)
    assert hashlib.sha256(data).hexdigest() == GOLDEN_LARGE


# ---- what is refused


@pytest.mark.parametrize('bad', [[[2**31]], [[-(2**31) - 1]], [[0.5]]])
def test_other_numbers_are_not_coded(bad):
    with pytest.raises(RiemError, match='integers of 32 bits'):
        encode(np.array(bad))
    with pytest.raises(RiemError, match='integers of 32 bits'):
        encode_vector(np.array(bad[0]))


@pytest.mark.parametrize(('shape', 'kernel_size'), [((4, 10), 3), ((4,), 1), ((2, 2, 2), 1), ((4, 4), 0)])
def test_shapes_that_no_matrix_has(shape, kernel_size):
    with pytest.raises(RiemError, match='rows and columns'):
        encode(np.zeros(shape, np.int8), kernel_size)
    with pytest.raises(RiemError, match='rows and columns'):
        decode(b'\1', shape, kernel_size)


@pytest.mark.parametrize(('data', 'match'), [(b'123', '12 bytes'), (b'\xff' * 40, 'bytes and more')])
def test_lanes_of_other_lengths(data, match):
    with pytest.raises(RiemError, match=match):
        decode(data, (4, 4), 1, LANES)


def test_another_number_of_lanes():
    symbols = normal(30, 90, 0.8)
    for lanes, others in ((1, LANES), (LANES, 1)):
        with pytest.raises(RiemError, match='expected'):
            decode(encode(symbols, 9, lanes), symbols.shape, 9, others)


def test_negative_shapes():
    with pytest.raises(RiemError, match='rows and columns'):
        decode(b'\1', (-1, 4), 1)


@pytest.mark.parametrize(
    'distortion', [lambda x: x[:-1], lambda x: x[1:], lambda x: x[:-20], lambda x: b'', lambda x: x + x]
)
def test_pieces_of_a_stream(distortion):
    symbols = normal(30, 90, 0.8)
    with pytest.raises(RiemError, match='expected'):
        decode(distortion(encode(symbols, 9)), symbols.shape, 9)
    vector = encode_vector(symbols[0])
    with pytest.raises(RiemError, match='expected'):
        decode_vector(distortion(vector), 90)


def test_trailing_zeros():
    symbols = normal(30, 90, 0.8)
    with pytest.raises(RiemError, match='zero byte at its end'):
        decode(encode(symbols, 9) + b'\0', symbols.shape, 9)
    with pytest.raises(RiemError, match='zero byte at its end'):
        decode_vector(encode_vector(symbols[0]) + b'\0', 90)


@pytest.mark.parametrize(
    ('shape', 'kernel_size'), [((29, 90), 9), ((30, 99), 9), ((30, 90), 1), ((90, 30), 3), ((0, 0), 1)]
)
def test_another_shape(shape, kernel_size):
    with pytest.raises(RiemError, match='expected'):
        decode(encode(normal(30, 90, 0.8), 9), shape, kernel_size)


def matrix_or_error(data, shape, kernel_size):
    try:
        back = decode(data, shape, kernel_size)
    except RiemError as error:
        assert 'expected' in str(error) and 'found' in str(error)
        return False
    assert back.dtype in (np.int8, np.int32) and back.shape == shape
    return True


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200), st.integers(0, 20), st.integers(0, 8), st.sampled_from([1, 2, 9, 300]))
def test_random_bytes(data, rows, channels, kernel_size):
    matrix_or_error(data, (rows, channels * kernel_size), kernel_size)
    try:
        back = decode_vector(data, rows)
    except RiemError:
        return
    assert back.dtype == np.int32 and back.shape == (rows,)


@pytest.mark.parametrize('scale', [0.8, 300.0])
def test_every_flipped_bit_gives_an_error_or_a_matrix(scale):
    symbols = normal(5, 18, scale)
    data = encode(symbols, 9)
    refused = 0
    for at in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[at // 8] ^= 1 << at % 8
        refused += not matrix_or_error(bytes(flipped), symbols.shape, 9)
    assert refused > len(data)


@pytest.mark.parametrize('count', [1, 100, 4000])
def test_random_bytes_seldom_give_a_matrix(count):
    rng = np.random.default_rng(6)
    assert sum(matrix_or_error(rng.bytes(count), (20, 36), 9) for _ in range(200)) <= 4


def test_a_magnitude_beyond_32_bits_is_refused():
    data = encode(np.full((1, 3), INT32.min))
    refused = 0
    for at in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[at // 8] ^= 1 << at % 8
        try:
            decode(bytes(flipped), (1, 3))
        except RiemError as error:
            refused += 'integers of 32 bits' in str(error)
    assert refused


# ---- vectors


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(INT32.min, INT32.max), max_size=20))
def test_every_vector_comes_back(values):
    back = decode_vector(encode_vector(np.array(values, np.int64)), len(values))
    assert back.dtype == np.int32 and back.tolist() == values


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 700), st.floats(0, 30), st.booleans(), st.integers(-100, 100), st.integers(0, 1000))
def test_vectors_of_scales_come_back(count, spread, smooth, offset, seed):
    values = normal(1, count, spread, seed)[0]
    values = offset + (values.cumsum() if smooth else values)
    assert np.array_equal(decode_vector(encode_vector(values), count), values)


def test_sizes_of_vectors():
    steps = normal(1, 600, 0.8)[0]
    assert len(encode_vector(steps - 35)) <= 1.03 * order_0_bytes(steps) + 8
    assert len(encode_vector(steps.cumsum() - 35)) <= 1.03 * order_0_bytes(steps) + 8
    assert len(encode_vector(np.full(1000, -35))) <= 8
    assert len(encode_vector(np.zeros(1000))) == len(encode_vector(np.zeros(0))) == 1
