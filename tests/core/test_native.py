"""The compiled part of decoding gives what the Python beside it gives, of whole streams and of damaged ones."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from mmriem.core import native
from mmriem.core.coding import paths
from mmriem.core.coding.entropy import decode, decode_vector, encode, encode_vector
from mmriem.core.coding.streams import LANES
from mmriem.core.errors import RiemError
from mmriem.core.file.manifest import Source
from mmriem.core.file.reading import from_bytes
from mmriem.core.pipeline.compress import compress
from mmriem.core.pipeline.settings import Settings
from mmriem.core.representations.lattice import trellis
from mmriem.core.representations.lattice.representation import Lattice
from mmriem.core.representations.lattice.trellis import Columns

INT32 = np.iinfo(np.int32)
pytestmark = pytest.mark.skipif(native.module is None, reason='mmriem/core/_native.c was not compiled')


def outcome(work):
    try:
        found = work()
    except RiemError as error:
        return str(error)
    return found.dtype, found.shape, found.tobytes()


def both(work):
    """What it comes to in Python and compiled."""
    compiled = outcome(work)
    module, native.module = native.module, None
    try:
        return outcome(work), compiled
    finally:
        native.module = module


def same(work):
    plain, compiled = both(work)
    assert plain == compiled
    return compiled


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
def test_matrices(rows, channels, period, scale, spread, lanes, seed):
    symbols = symbols_of(rows, channels * period, scale, spread, seed)
    data = encode(symbols, period, lanes)
    found = same(lambda: decode(data, symbols.shape, period, lanes))
    assert np.array_equal(np.frombuffer(found[2], found[0]), symbols.reshape(-1))


@pytest.mark.parametrize('lanes', [1, LANES])
@pytest.mark.parametrize(
    ('shape', 'period'), [((1000, 700), 1), ((130, 800 * 9), 9), ((2, 3 * 3000), 3000), ((700, 200), 1), ((1, 9000), 1)]
)
def test_matrices_of_many_tiles(shape, period, lanes):
    symbols = symbols_of(*shape, 0.8)
    data = encode(symbols, period, lanes)
    found = same(lambda: decode(data, shape, period, lanes))
    assert np.array_equal(np.frombuffer(found[2], found[0]), symbols.reshape(-1))


def path(rows, columns, scale, seed=0):
    """Integers that follow a trellis."""
    halves = np.abs(symbols_of(rows, columns, scale, 0.3, seed)).astype(np.int64)
    return paths.sizes(halves) * np.where(symbols_of(rows, columns, 1.0, 0.0, seed + 1) < 0, -1, 1)


@settings(max_examples=100, deadline=None)
@given(
    st.integers(0, 30),
    st.integers(0, 20),
    st.sampled_from([1, 4, 9]),
    st.floats(0.05, 1e4),
    st.sampled_from([1, LANES]),
    st.integers(0, 1000),
)
def test_matrices_along_a_trellis(rows, channels, period, scale, lanes, seed):
    symbols = path(rows, channels * period, scale, seed)
    data = encode(symbols, period, lanes, True)
    found = same(lambda: decode(data, symbols.shape, period, lanes, True))
    assert np.array_equal(np.frombuffer(found[2], found[0]), symbols.reshape(-1))


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=300), st.integers(0, 30), st.integers(0, 8), st.sampled_from([1, 9]))
def test_random_bytes_along_a_trellis(data, rows, channels, period):
    same(lambda: decode(data, (rows, channels * period), period, 1, True))


@pytest.mark.parametrize('scale', [0.8, 300.0])
def test_every_flipped_bit_along_a_trellis(scale):
    symbols = path(5, 18, scale)
    data = encode(symbols, 9, 1, True)
    for at in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[at // 8] ^= 1 << at % 8
        same(lambda flipped=bytes(flipped): decode(flipped, symbols.shape, 9, 1, True))


@pytest.mark.parametrize(
    ('rows', 'columns', 'cancels'), [(30, 60, True), (5, 128, True), (40, 50, False), (1, 1, True)]
)
@pytest.mark.parametrize('scale', [0.3, 1.5, 6.0, 200.0, 1e7])
def test_searches(rows, columns, cancels, scale):
    rng = np.random.default_rng(0)
    weight = rng.normal(0, scale, (rows, columns)).astype(np.float32)
    target = weight + rng.normal(0, 0.2, (rows, columns)).astype(np.float32)
    factor = (np.eye(columns) + np.triu(rng.normal(0, 0.3, (columns, columns)), 1)).astype(np.float32)
    scales = [np.exp(rng.normal(0, 0.4, columns)).astype(np.float32) for _ in range(2)]
    table = trellis.prices(weight / scales[0])
    start = rng.integers(0, 8, rows).astype(np.uint8)

    def work():
        states = start.copy()
        columns = Columns(factor if cancels else None, *scales, table)
        codes, errors = trellis.search(weight, target, columns, states)
        return np.concatenate([codes.astype(np.float64), errors[:, None], states[:, None]], 1)

    same(work)


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
def test_random_bytes(data, rows, channels, period, dealt):
    if dealt and len(data) > 8:
        third = (len(data) // 4).to_bytes(4, 'little')
        data = third * 3 + data
    same(lambda: decode(data, (rows, channels * period), period, LANES if dealt else 1))
    same(lambda: decode_vector(data, rows))


@pytest.mark.parametrize(('scale', 'period', 'lanes'), [(0.8, 9, 1), (300.0, 9, 1), (0.8, 1, LANES), (300.0, 9, LANES)])
def test_every_flipped_bit(scale, period, lanes):
    symbols = symbols_of(5, 18, scale)
    data = encode(symbols, period, lanes)
    errors = set()
    for at in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[at // 8] ^= 1 << at % 8
        found = same(lambda flipped=bytes(flipped): decode(flipped, symbols.shape, period, lanes))
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


@pytest.mark.parametrize('period', [1, 9])
def test_weights(period):
    rng = np.random.default_rng(3)
    exponents = [rng.integers(-30, 30, size).astype(np.int32) for size in (70, 90)]
    lattice = Lattice(symbols_of(70, 90, 2.0).astype(np.int8), 0.0173, *exponents, period)
    same(lambda: lattice.decode().numpy())


def test_weights_that_float32_cannot_hold():
    huge = np.full(4, 2000, np.int32)
    lattice = Lattice(np.ones((4, 4), np.int8), 1.0, huge, huge, 1)
    same(lambda: lattice.decode().numpy())
    assert torch.isinf(lattice.decode()).all()


def test_whole_files(monkeypatch):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(8, 24, 3), nn.BatchNorm2d(24), nn.Conv2d(24, 24, 3, groups=2), nn.Conv2d(24, 16, 1))

    def written():
        source = Source('net.pth', 64 * 'a')
        return compress(net, Settings.of(bits=4.0, min_numel=64), dataset_meta={}, source=source).archive.to_bytes()

    data = written()
    decoded = from_bytes(data).decode()
    monkeypatch.setattr(native, 'module', None)
    assert written() == data
    assert all(torch.equal(decoded[key], tensor) for key, tensor in from_bytes(data).decode().items())


def test_a_search_of_other_sizes_is_refused():
    def work(rows=3, columns=4, state=0, table=128, factor=16):
        matrices = (np.ones((rows, columns), np.float32), np.ones((3, 4), np.float32))
        factor = np.ones(factor, np.float32)
        ends = np.full(3, state, np.uint8), np.empty((3, 4), np.float32), np.zeros(3)
        steps, pivots = np.ones(4, np.float32), np.ones(4, np.float32)
        native.module.search(*matrices, factor, steps, pivots, np.ones(table, np.float32), *ends)

    work()
    for wrong in (dict(rows=2), dict(columns=5), dict(state=8), dict(table=127), dict(factor=15)):
        with pytest.raises(ValueError, match='other sizes'):
            work(**wrong)


@pytest.mark.parametrize('sizes', [(16, 4, 5, 1), (20, 4, 5, 2), (20, -4, -5, 1), (20, 4, 5, 0)])
def test_buffers_of_other_sizes_are_refused(sizes):
    count, rows, columns, period = sizes
    tables = np.zeros(56 * 72), np.zeros(8)
    with pytest.raises(ValueError, match='other sizes'):
        native.module.matrix((b'\1',), np.empty(count, np.int8), rows, columns, period, False, *tables)
    with pytest.raises(ValueError, match='other sizes'):
        native.module.matrix((b'\1',), np.empty(20, np.int8), 4, 5, 1, False, tables[0][1:], tables[1])
    with pytest.raises(ValueError, match='other sizes'):
        native.module.dequantise(np.empty((4, 5), np.float32), np.ones(4), np.ones(5), np.ones(count - 1, np.int8))
