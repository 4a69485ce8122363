"""Recipes against the definition by loops, and against the buffers of real modules."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmriem.core.errors import RiemError
from mmriem.core.file.derived import MAX_ELEMENTS, RECIPES, DerivedRecord, derive


def window_index(height, width):
    """Swin's index by its definition: offset of two tokens, counted from the smallest one."""
    tokens = [(y, x) for y in range(height) for x in range(width)]
    rows = [[(y - v + height - 1) * (2 * width - 1) + x - u + width - 1 for v, u in tokens] for y, x in tokens]
    return torch.tensor(rows)


@pytest.mark.parametrize('window', [(7, 7), (12, 12), (1, 1), (1, 6), (6, 1), (2, 2), (4, 9), (9, 4)])
@pytest.mark.parametrize('dtype', [torch.int64, torch.int32])
def test_window_index_is_rebuilt(window, dtype):
    index = window_index(*window).to(dtype)
    record = derive('attn.relative_position_index', index)
    assert record is not None
    assert record.recipe == 'relative_position_index'
    assert record.decode().dtype == dtype and torch.equal(record.decode(), index)


def test_window_index_of_mmdet_is_recognised():
    swin = pytest.importorskip('mmdet.models.backbones.swin')
    for window in ((7, 7), (3, 5)):
        buffer = swin.WindowMSA(8, 2, window).relative_position_index
        assert derive('index', buffer).params == window


def test_another_index_is_not_derived():
    index = window_index(3, 3)
    index[4, 5] += 1
    assert derive('index', index) is None
    assert derive('index', window_index(3, 3).T) is None
    assert derive('index', window_index(3, 3).float()) is None


@settings(max_examples=60, deadline=None)
@given(
    value=st.one_of(st.floats(width=16, allow_nan=False, allow_infinity=False), st.integers(-128, 127), st.booleans()),
    shape=st.lists(st.integers(1, 4), min_size=1, max_size=3).filter(lambda shape: shape != [1] * len(shape)),
    float_dtype=st.sampled_from([torch.float16, torch.float32, torch.float64]),
    int_dtype=st.sampled_from([torch.int8, torch.int16, torch.int32, torch.int64]),
)
def test_constants_are_rebuilt_bit_for_bit(value, shape, float_dtype, int_dtype):
    dtype = {bool: torch.bool, int: int_dtype, float: float_dtype}[type(value)]
    tensor = torch.full(shape, value, dtype=dtype)
    record = derive('c', tensor)
    decoded = record.decode()
    assert decoded.dtype == dtype and torch.equal(decoded, tensor)
    assert not dtype.is_floating_point or torch.equal(decoded.signbit(), tensor.signbit())


@pytest.mark.parametrize('count', [0, 7, 2**40])
def test_counters_are_constants(count):
    record = derive('bn.num_batches_tracked', torch.tensor(count))
    assert (record.recipe, record.params, record.shape, record.dtype) == ('constant', (count,), (), 'int64')
    assert torch.equal(record.decode(), torch.tensor(count))


@pytest.mark.parametrize(
    'tensor',
    [
        torch.tensor(1.2345),
        torch.tensor([1.0]),
        torch.tensor([1.0, 2.0]),
        torch.tensor([0.0, -0.0]),
        torch.tensor([float('nan')] * 2),
        torch.tensor([float('inf')] * 2),
        torch.zeros(0),
        torch.zeros(3, dtype=torch.complex64),
        torch.ones(2, 2, dtype=torch.complex64),
        torch.zeros(1).expand(MAX_ELEMENTS + 1),
    ],
    ids=lambda tensor: f'{tensor.flatten()[:2].tolist()}',
)
def test_not_derived(tensor):
    assert derive('x', tensor) is None


@pytest.mark.parametrize(
    ('recipe', 'shape', 'dtype', 'params'),
    [
        ('nothing', (2,), 'float32', (1.0,)),
        ('constant', (2,), 'float32', ()),
        ('constant', (2,), 'float32', (1.0, 1.0)),
        ('constant', (2,), 'float32', (1,)),
        ('constant', (2,), 'float32', (True,)),
        ('constant', (2,), 'float32', (0.1,)),
        ('constant', (2,), 'float16', (1e6,)),
        ('constant', (2,), 'int64', (1.0,)),
        ('constant', (2,), 'uint8', (256,)),
        ('constant', (2,), 'int8', (-129,)),
        ('constant', (2,), 'bool', (1,)),
        ('constant', (2,), 'complex64', (1.0,)),
        ('constant', (2**13, 2**13), 'float32', (1.0,)),
        ('relative_position_index', (4, 4), 'int64', (2, 3)),
        ('relative_position_index', (4, 4), 'int64', (-2, -2)),
        ('relative_position_index', (4, 4), 'int64', (2.0, 2.0)),
        ('relative_position_index', (4, 4), 'int64', (True, 4)),
        ('relative_position_index', (4, 4), 'int64', (2,)),
        ('relative_position_index', (4, 4), 'bool', (2, 2)),
        ('relative_position_index', (4, 4), 'complex64', (2, 2)),
        ('x' * 5000, (2,), 'float32', (1.0,)),
        ('constant', (2,), 'float32', (1.0,) * 5000),
        ('relative_position_index', (144, 144), 'uint8', (12, 12)),
        ('relative_position_index', (4, 4, 1), 'int64', (2, 2)),
    ],
)
def test_records_that_no_recipe_takes_are_refused(recipe, shape, dtype, params):
    with pytest.raises(RiemError, match=r"'layer\.table'") as raised:
        DerivedRecord('layer.table', shape, dtype, recipe, params).decode()
    assert len(str(raised.value)) < 400


def test_every_recipe_turns_down_what_is_not_its_own():
    noise = torch.rand(5, 5, generator=torch.Generator().manual_seed(0))
    for recipe in RECIPES.values():
        assert recipe.recognise(noise) is None
        assert recipe.build((5, 5), torch.float32, ('text',)) is None
