"""Dense tensors: what fp16 may hold, and that everything comes back in shape and dtype."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from mmriem.core.errors import RiemError
from mmriem.core.file.dense import DTYPES, DenseLayout, DenseRecord, dtype_name, store

SHAPES = arrays.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)


def same_bits(left, right):
    if left.dtype != right.dtype or left.shape != right.shape:
        return False
    flat = (side.contiguous().reshape(-1).view(torch.uint8) for side in (left, right))
    return torch.equal(*flat)


@settings(max_examples=150, deadline=None)
@given(arrays.arrays(np.float32, SHAPES, elements=st.floats(width=32, allow_nan=False, allow_infinity=False)))
def test_float32_keeps_the_promised_error(values):
    tensor = torch.from_numpy(values)
    record = store('x', tensor)
    decoded = record.decode()
    assert decoded.shape == tensor.shape and decoded.dtype == torch.float32
    assert len(record.values) == record.layout.n_bytes
    if record.layout.storage == 'half':
        exact = values.astype(np.float64)
        assert (np.abs(decoded.double().numpy() - exact) <= np.abs(exact) * 2.0**-11 + 2.0**-25).all()
    else:
        assert same_bits(decoded, tensor)


@pytest.mark.parametrize(
    ('values', 'dtype', 'storage'),
    [
        ([0.1, -3.0], torch.float32, 'half'),
        ([65504.0, 1e-9], torch.float32, 'half'),
        ([65520.0], torch.float32, 'single'),
        ([float('inf')], torch.float32, 'single'),
        ([float('nan')], torch.float32, 'single'),
        ([float('nan')], torch.float16, 'single'),
        ([0.5, 1e5], torch.bfloat16, 'single'),
        ([0.5, 2.0], torch.bfloat16, 'half'),
        ([1e30], torch.float64, 'single'),
        ([1e300], torch.float64, 'raw'),
        ([1, 2], torch.int64, 'raw'),
        ([True, False], torch.bool, 'raw'),
        ([1 + 2j], torch.complex64, 'raw'),
    ],
)
def test_storage_of_each_case(values, dtype, storage):
    assert store('x', torch.tensor(values, dtype=dtype)).layout.storage == storage


@pytest.mark.parametrize('name', DTYPES)
def test_every_dtype_comes_back(name):
    values = torch.tensor([[0, 1, 1], [1, 0, 1]]).to(DTYPES[name])
    record = store('x', values.T)  # not contiguous
    assert record.layout.dtype == name
    assert same_bits(record.decode(), values.T)


@pytest.mark.parametrize('dtype', [torch.int8, torch.int16, torch.int32, torch.int64])
def test_integers_are_exact_at_their_extremes(dtype):
    extremes = torch.tensor([torch.iinfo(dtype).min, -1, 0, torch.iinfo(dtype).max], dtype=dtype)
    assert same_bits(store('x', extremes).decode(), extremes)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64])
@pytest.mark.parametrize('value', [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize('shape', [(), (5,), (2, 3)])
def test_values_that_are_not_finite_are_refused(dtype, value, shape):
    tensor = torch.ones(shape, dtype=dtype)
    tensor.view(-1)[-1] = value
    with pytest.raises(RiemError, match=r"'head\.bias': expected finite values"):
        store('head.bias', tensor).decode()


def test_values_that_only_the_dtype_to_restore_makes_infinite_are_refused():
    layout = DenseLayout('x', (1,), 'float16', 'single')
    with pytest.raises(RiemError, match='expected finite values'):
        DenseRecord(layout, np.array([1e6], '<f4').tobytes()).decode()


def test_a_mask_of_attention_may_be_infinite_and_nothing_like_it():
    mask = torch.full((4, 4), -math.inf).triu(1)
    assert same_bits(store('mask', mask).decode(), mask)
    for other in (-mask, mask + 1, mask[0], torch.full((2, 2), -math.inf), mask + mask.T.clone().fill_(0).log()):
        with pytest.raises(RiemError, match='or a mask of 0 and -inf'):
            store('mask', other).decode()


def test_values_are_little_endian():
    assert store('x', torch.tensor([1.0])).values == bytes.fromhex('003c')
    assert store('x', torch.tensor([1e6])).values == bytes.fromhex('00247449')
    assert store('x', torch.tensor([258])).values == bytes.fromhex('0201000000000000')


def test_a_norm_with_tiny_variances_keeps_its_scale():
    variance = torch.logspace(-12, 4, 400)
    decoded = store('bn.running_var', variance).decode()
    for eps in (1e-5, 1e-3):
        scale, exact = (1 / (v.double() + eps).sqrt() for v in (decoded, variance))
        assert ((scale - exact) / exact).abs().max() < 1.6e-3


def test_decoded_memory_is_its_own():
    record = store('x', torch.ones(3))
    record.decode().zero_()
    assert torch.equal(record.decode(), torch.ones(3))


def test_unknown_dtype_is_refused_with_its_key():
    with pytest.raises(RiemError, match=r"'head\.scale'.*float8_e4m3fn"):
        store('head.scale', torch.zeros(2).to(torch.float8_e4m3fn))
    with pytest.raises(RiemError, match='float8'):
        dtype_name('x', torch.float8_e5m2)


@pytest.mark.parametrize(
    ('dtype', 'storage'),
    [('int64', 'half'), ('bool', 'single'), ('bfloat16', 'raw'), ('float32', 'zip'), ('float', 'half')],
)
def test_storage_that_cannot_hold_the_dtype_is_refused(dtype, storage):
    with pytest.raises(RiemError, match=f"'x'.*'{dtype}'.*'{storage}'"):
        DenseLayout('x', (2,), dtype, storage)


def test_booleans_other_than_0_and_1_are_refused():
    with pytest.raises(RiemError, match="'mask'"):
        DenseRecord(DenseLayout('mask', (2,), 'bool', 'raw'), b'\1\2').decode()
