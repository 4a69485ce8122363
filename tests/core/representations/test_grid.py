"""Quantisation: grids that the file can hold, rounding in a metric, and integers packed without gaps."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmriem.core.coding.packing import PayloadReader, float_bytes, pack, packed_bytes, unpack
from mmriem.core.errors import RiemError
from mmriem.core.representations.grid import STATE_BITS, Grid

BITS = range(STATE_BITS[0], STATE_BITS[1] + 1)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def levels(grid):
    """``(2**bits, D)`` float64, straight from the definition."""
    return grid.low.double() + torch.arange(2**grid.bits)[:, None] * grid.step.double()


def objective(grid, codes, target, metric):
    """``(x - target)^T metric (x - target)`` of each row, in float64."""
    error = grid.low.double() + codes.double() * grid.step.double() - target.double()
    return torch.einsum('nd,nde,ne->n', error, metric.double().expand(len(error), -1, -1), error)


# ---- grids


@pytest.mark.parametrize('bits', BITS)
def test_levels_divide_the_range_of_each_column_uniformly(bits):
    states = randn(200, 5) * torch.tensor([0.01, 0.3, 1.0, 40.0, 2000.0]) + 0.7
    grid = Grid.between(states, bits)
    low, high = states.amin(0), states.amax(0)
    table = levels(grid)
    assert len(table) == 2**bits
    spacing = table.diff(dim=0)
    assert torch.allclose(spacing, spacing[:1].expand_as(spacing))
    # low and step are float16 numbers: 11 significant bits
    assert ((table[0] - low).abs() <= 2**-11 * low.abs()).all()
    assert ((table[-1] - high).abs() <= 2**-11 * (low.abs() + 1.01 * (high - low)) + 2**bits * 2**-25).all()


@settings(max_examples=50, deadline=None)
@given(st.sampled_from(BITS), st.floats(1e-6, 1e4), st.floats(-100, 100), st.integers(0, 10))
def test_low_and_step_are_what_the_file_holds(bits, scale, offset, seed):
    grid = Grid.between(randn(20, 3, seed=seed) * scale + offset, bits)
    for stored in (grid.low, grid.step):
        assert stored.dtype == torch.float32 and torch.equal(stored, stored.half().float())
    assert (grid.step > 0).all()


def test_a_grid_covers_blocks_of_states_together():
    states = torch.tensor([[[0.0, -2.0]], [[3.0, 1.0]]])  # (2, 1, 2)
    grid = Grid.between(states, 2)
    assert grid.low.tolist() == [0.0, -2.0] and grid.step.tolist() == [1.0, 1.0]
    assert grid.nearest(states).tolist() == [[[0, 0]], [[3, 3]]]


def test_clip_bounds_the_range_in_standard_deviations():
    states = randn(5000, 1)
    states[0] = 100.0
    mean, spread = float(states.mean()), float(states.std())
    table = levels(Grid.between(states, 3, clip=1.5))
    assert float(table[0]) == pytest.approx(mean - 1.5 * spread, rel=2e-3)
    assert float(table[-1]) == pytest.approx(mean + 1.5 * spread, rel=2e-3)
    wide = Grid.between(states, 3, clip=1000.0)
    unclipped = Grid.between(states, 3)
    assert torch.equal(wide.low, unclipped.low) and torch.equal(wide.step, unclipped.step)


@pytest.mark.parametrize('bits', BITS)
def test_nearest_is_the_nearest_of_all_levels(bits):
    states = randn(300, 3)
    grid = Grid.between(states, bits, clip=2.0)
    states[0], states[1] = 50.0, -50.0
    codes = grid.nearest(states)
    assert codes.dtype == torch.uint8 and int(codes.max()) == 2**bits - 1 and int(codes.min()) == 0
    distance = (states[:, None].double() - levels(grid)).abs()  # (300, levels, 3)
    chosen = distance.gather(1, codes[:, None].long())[:, 0]
    assert (chosen <= distance.amin(1) + 1e-6).all()


def test_values_round_the_exact_level_once():
    grid = Grid(torch.tensor([0.1]).half().float(), torch.tensor([0.3]).half().float(), 8)
    codes = torch.arange(256, dtype=torch.uint8)[:, None]
    exact = [np.float32(float(grid.low) + float(grid.step) * code) for code in range(256)]
    assert grid.values(codes)[:, 0].tolist() == exact


@pytest.mark.parametrize('value', [0.0, 1.0, -3.7, 1e-9])
def test_a_constant_column_has_a_grid_that_holds_it(value):
    states = torch.full((7, 1), value)
    grid = Grid.between(states, 4)
    error = (grid.values(grid.nearest(states)) - states).abs()
    assert float(error.max()) <= 2**-11 * abs(value) + 2**-25


# ---- rounding in a metric


def positive_definite(rows, d, seed, spread=1.0):
    root = randn(rows, d, d, seed=seed)
    return root @ root.transpose(1, 2) + spread * torch.eye(d)


@pytest.mark.parametrize(('d', 'bits'), [(2, 2), (3, 2), (2, 4)])
def test_metric_rounding_against_all_combinations_of_levels(d, bits):
    metric, target = positive_definite(200, d, seed=1, spread=0.05), 1.2 * randn(200, d, seed=2)
    grid = Grid(torch.full((d,), -1.5), torch.full((d,), 3 / (2**bits - 1)).half().float(), bits)
    everything = torch.tensor(list(itertools.product(range(2**bits), repeat=d)))
    all_errors = torch.stack([objective(grid, codes.expand(200, d), target, metric) for codes in everything], 1)
    best = all_errors.amin(1)
    found = objective(grid, grid.round_in_metric(target, metric), target, metric)
    nearest = objective(grid, grid.nearest(target), target, metric)
    assert (found >= best - 1e-9).all()
    assert found.mean() < nearest.mean()
    # it also finds the best of all more often than rounding each coordinate by itself
    hits, hits_of_nearest = ((error <= best + 1e-9).sum() for error in (found, nearest))
    assert hits > 1.1 * hits_of_nearest


def test_with_a_diagonal_metric_it_is_the_nearest_level():
    grid = Grid(torch.full((5,), -1.0), torch.full((5,), 0.25), 3)
    target = randn(100, 5, seed=3)
    metric = torch.diag_embed(randn(100, 5, seed=4).square() + 0.1)
    assert torch.equal(grid.round_in_metric(target, metric), grid.nearest(target))


def test_one_metric_for_all_rows_is_that_metric_for_each_row():
    grid = Grid(torch.full((6,), -2.0), torch.full((6,), 0.25), 4)
    target, metric = randn(40, 6, seed=5).double(), positive_definite(1, 6, seed=6).double()
    together = grid.round_in_metric(target, metric)
    assert torch.equal(together, grid.round_in_metric(target, metric.expand(40, 6, 6).contiguous()))


@pytest.mark.parametrize('d', [1, 5, 64, 65, 150])
@pytest.mark.parametrize('shared', [True, False])
def test_what_defines_cancellation_holds_for_every_coordinate(d, shared):
    """Inside the grid each coordinate of ``L^T error`` is within half a step of zero (Babai's nearest plane)."""
    rows = 3
    metric = positive_definite(1 if shared else rows, d, seed=7, spread=float(d)).double()
    grid = Grid(torch.full((d,), -128 * 0.125), torch.full((d,), 0.125), 8)
    target = randn(rows, d, seed=8).double()
    codes = grid.round_in_metric(target, metric)
    assert int(codes.min()) > 0 and int(codes.max()) < 255
    error = (levels(grid)[0] + codes.double() * grid.step.double() - target) / grid.step.double()
    lower = torch.linalg.cholesky(metric)
    residual = torch.einsum('ned,ne->nd', lower.expand(rows, d, d), error)
    bound = 0.5 * lower.diagonal(dim1=1, dim2=2)
    assert (residual.abs() <= bound * (1 + 1e-9)).all()


def test_rows_whose_metric_is_not_positive_definite_take_the_nearest_level():
    grid = Grid(torch.full((4,), -2.0), torch.full((4,), 0.25), 4)
    target, metric = randn(6, 4, seed=9), positive_definite(6, 4, seed=10)
    good = grid.round_in_metric(target, metric)
    metric[1], metric[2], metric[3] = -torch.eye(4), torch.full((4, 4), float('nan')), torch.zeros(4, 4)
    codes = grid.round_in_metric(target, metric)
    assert torch.equal(codes[1:4], grid.nearest(target)[1:4])
    assert torch.equal(codes[[0, 4, 5]], good[[0, 4, 5]])


# ---- packing


def test_packing_by_hand():
    assert pack(torch.tensor([1, 2, 3], dtype=torch.uint8), 2) == bytes([0b01_10_11_00])
    assert pack(torch.tensor([1, 6, 7], dtype=torch.uint8), 3) == bytes([0b001_110_11, 0b1_0000000])
    assert pack(torch.tensor([[17], [255]], dtype=torch.uint8), 8) == bytes([17, 255])


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_unpack_inverts_pack(data):
    bits = data.draw(st.integers(1, 8))
    shape = tuple(data.draw(st.lists(st.integers(1, 6), min_size=1, max_size=3)))
    count = int(np.prod(shape))
    codes = data.draw(st.lists(st.integers(0, 2**bits - 1), min_size=count, max_size=count))
    codes = torch.tensor(codes, dtype=torch.uint8).reshape(shape)
    packed = pack(codes, bits)
    assert len(packed) == packed_bytes(count, bits) == -(-count * bits // 8)
    unpacked = unpack(packed, bits, shape)
    assert unpacked.dtype == torch.uint8 and torch.equal(unpacked, codes)


@pytest.mark.parametrize('position', range(4, 8))
def test_a_set_padding_bit_is_refused(position):
    packed = bytes([0b1010_0000 | 1 << 7 - position])
    with pytest.raises(RiemError, match='padding'):
        unpack(packed, 4, (1,))


# ---- reading a payload


def test_a_payload_is_read_piece_by_piece():
    payload = np.array([1.5, -2.0], '<f2').tobytes() + np.array([0.1], '<f4').tobytes() + bytes([0b0110_1100])
    reader = PayloadReader(payload, 9)
    halves, single, integers = reader.floats('<f2', (2, 1)), reader.floats('<f4', ()), reader.integers(2, (3,))
    assert halves.tolist() == [[1.5], [-2.0]] and halves.dtype == torch.float32
    assert single.shape == () and float(single) == np.float32(0.1)
    assert integers.tolist() == [1, 2, 3]


@pytest.mark.parametrize('length', [0, 8, 10])
def test_a_payload_of_another_length_is_refused(length):
    with pytest.raises(RiemError, match=f'expected 9 bytes, found {length}'):
        PayloadReader(bytes(length), 9)


@pytest.mark.parametrize('value', [float('nan'), float('inf'), -float('inf')])
@pytest.mark.parametrize('dtype', ['<f2', '<f4'])
def test_numbers_that_are_not_finite_are_refused(value, dtype):
    payload = np.array([0.0, value], dtype).tobytes()
    with pytest.raises(RiemError, match='finite'):
        PayloadReader(payload, len(payload)).floats(dtype, (2,))


def test_float_bytes_are_little_endian():
    assert float_bytes(torch.tensor([1.0, -2.0], requires_grad=True), '<f2') == b'\x00\x3c\x00\xc0'
    assert float_bytes(torch.tensor(1.0), '<f4') == b'\x00\x00\x80\x3f'
