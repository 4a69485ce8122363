import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmriem.core.coding import entropy
from mmriem.core.errors import RiemError
from mmriem.core.file.dense import DenseLayout
from mmriem.core.file.vectors import LARGEST, LEAST_PRECISION, PRECISION, VectorRecord, decode, encode, quantise


def normal(count=256, scale=1.0, shift=0.0, seed=0):
    return scale * torch.randn(count, generator=torch.Generator().manual_seed(seed)) + shift


def records():
    return [
        quantise('a.weight', normal(64, 0.3, 1.0), 'linear'),
        quantise('a.running_var', normal(64, 2.0, seed=1).exp(), 'logarithm'),
        quantise('b.bias', normal(40, 1e-4, seed=2), 'linear', aliases=('c.bias',)),
        quantise('d.bias', normal(9, 100.0, 5000.0, seed=3).half(), 'linear'),
    ]


@pytest.mark.parametrize('scale', [1e-8, 1.0, 1e8])
@pytest.mark.parametrize('shift', [0.0, 30.0])
def test_the_error_is_a_share_of_the_spread(scale, shift):
    vector = normal(2048, scale, shift * scale)
    error = quantise('bias', vector, 'linear').decode() - vector
    step = 2 ** (-PRECISION / 4)
    assert 0.2 * step <= float(error.std() / vector.std()) <= 0.3 * step  # step / sqrt(12), rounded down to quarters
    coarse = quantise('bias', vector, 'linear', LEAST_PRECISION).decode() - vector
    assert float(coarse.std() / vector.std()) <= 0.3 * 2 ** (-LEAST_PRECISION / 4)


def test_a_variance_has_a_small_relative_error():
    variance = normal(2048, 3.0).exp()
    decoded = quantise('running_var', variance, 'logarithm').decode()
    assert float((decoded / variance).log().abs().max()) <= np.log(2) / 2 / 2 ** (PRECISION // 4 - 1) + 1e-6


def test_a_variance_of_zero_stays_next_to_zero():
    variance = torch.cat([torch.zeros(8), torch.ones(8)])
    decoded = quantise('running_var', variance, 'logarithm').decode()
    assert float(decoded[:8].max()) <= 1e-12 and torch.equal(decoded[8:], torch.ones(8))


@pytest.mark.parametrize(
    ('vector', 'storage'),
    [
        (normal(7), 'linear'),
        (torch.ones(64), 'linear'),
        (torch.tensor([float('nan')] * 8), 'linear'),
        (normal(64).reshape(8, 8), 'linear'),
        (normal(64, 1e-7, 1e3), 'linear'),  # in float32 these are a few distinct values or one
        (normal(64), 'logarithm'),
    ],
    ids=['short', 'constant', 'nan', 'matrix', 'narrow', 'negative variance'],
)
def test_what_cannot_be_rounded_stays_as_it_is(vector, storage):
    assert quantise('bias', vector, storage) is None


def test_vectors_come_back_in_their_dtypes_with_the_same_bits():
    made = records()
    again = decode(encode(made), [record.layout for record in made])
    for one, other in zip(made, again):
        assert one.layout == other.layout and torch.equal(one.decode(), other.decode())
    assert again[3].decode().dtype == torch.float16


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(8, 40), st.floats(-15, 15), st.floats(-1e3, 1e3), st.booleans()), min_size=1, max_size=5
    )
)
def test_any_vectors_come_back(cases):
    made = []
    for seed, (count, power, shift, is_variance) in enumerate(cases):
        vector = normal(count, 10.0**power, shift * 10.0**power, seed)
        made.append(quantise('x', vector.abs() if is_variance else vector, 'logarithm' if is_variance else 'linear'))
    made = [record for record in made if record is not None]
    again = decode(encode(made), [record.layout for record in made])
    assert [record.scale for record in again] == [record.scale for record in made]
    assert all(np.array_equal(one.codes, other.codes) for one, other in zip(again, made))


def test_a_number_takes_about_seven_bits():
    made = [quantise(f'{number}', normal(256, seed=number), 'linear') for number in range(8)]
    assert 7 < 8 * len(encode(made)) / 2048 < 7.8  # log2(32) + 2.05 and half a quarter octave: 7.2


def test_no_vector_takes_no_byte():
    assert encode([]) == b'' and decode(b'', []) == []


def test_golden_bytes():
    codes = np.arange(-4, 6, dtype=np.int32)
    layouts = [DenseLayout('a', (10,), 'float32', 'linear'), DenseLayout('b', (10,), 'float32', 'logarithm')]
    made = [VectorRecord(layouts[0], -6, codes), VectorRecord(layouts[1], 2, codes)]
    data = encode(made)
    assert data.hex() == GOLDEN
    first, second = decode(data, layouts)
    assert first.decode()[:3].tolist() == [-1.4142135381698608, -1.0606601238250732, -0.7071067690849304]
    assert second.decode()[:3].tolist() == [0.5, 0.5946035385131836, 0.7071067690849304]


GOLDEN = '05000000010000000f801591c801ba97ed9cb42212a6a25a5e42'


def damaged(data, layouts):
    with pytest.raises(RiemError) as caught:
        for record in decode(data, layouts):
            record.decode()
    return str(caught.value)


def test_damaged_bytes_are_one_error():
    made = records()
    layouts, data = [record.layout for record in made], encode(made)
    for stop in range(len(data)):
        assert damaged(data[:stop], layouts)
    assert 'expected' in damaged(data + b'\1', layouts)
    assert 'expected at least 8 bytes, found 0' in damaged(b'', layouts)
    shorter = [*layouts[:3], DenseLayout('d.bias', (8,), 'float16', 'linear')]
    assert damaged(data, shorter)


@pytest.mark.parametrize(
    ('storage', 'scale', 'code', 'said'),
    [
        ('linear', 401, 0, 'expected a scale of -400 to 400, found 401'),
        ('logarithm', 9, 0, 'expected a scale of 0 to 8, found 9'),
        ('logarithm', -1, 0, 'expected a scale of 0 to 8, found -1'),
        ('linear', 0, LARGEST + 1, 'expected integers of at most'),
        ('linear', 400, LARGEST, 'expected finite values'),
        ('logarithm', 0, LARGEST, 'expected finite values'),
    ],
)
def test_what_no_writer_writes_is_refused(storage, scale, code, said):
    layout = DenseLayout('norm.weight', (8,), 'float16', storage)
    scales, centres = (entropy.encode_vector(np.array([value], np.int32)) for value in (scale, code))
    header = np.array([len(scales), len(centres)], '<u4').tobytes()
    data = header + scales + centres + entropy.encode(np.zeros((1, 8), np.int32))
    assert said in damaged(data, [layout])
