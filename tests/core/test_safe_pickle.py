"""Pickles of plain values and arrays; `tests/engine/test_pickled.py` has those of `torch.save`."""

import io
import os
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mmriem.core.safe_pickle import load_arrays

DTYPES = st.one_of(hnp.integer_dtypes(endianness='?'), hnp.floating_dtypes(endianness='?', sizes=(16, 32, 64)))
ARRAYS = hnp.arrays(DTYPES, hnp.array_shapes(min_dims=0, min_side=0, max_side=4))
LEAVES = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(), ARRAYS)
TREES = st.recursive(LEAVES, lambda inner: st.one_of(st.lists(inner), st.tuples(inner, inner)))


def same(read, tree):
    if isinstance(tree, (list, tuple)):
        return type(read) is type(tree) and len(read) == len(tree) and all(map(same, read, tree))
    if isinstance(tree, np.ndarray):
        return read.dtype == tree.dtype and np.array_equal(read, tree, equal_nan=True)
    return read == tree


@settings(max_examples=50, deadline=None)
@given(TREES, st.integers(2, 4))
def test_trees_come_back_as_they_were(tree, protocol):
    assert same(load_arrays(io.BytesIO(pickle.dumps({'tree': tree}, protocol)))['tree'], tree)


@pytest.mark.parametrize(
    'pickled',
    [
        b'cos\nsystem\n(U\x04trueU\x00tR.',
        b'cnumpy\nload\n.',
        b'cbuiltins\ngetattr\n.',
        b'c_codecs\nencode\n(X\x01\x00\x00\x00aX\x05\x00\x00\x00utf_7tR.',
        b'X\x01\x00\x00\x00aQ.',
    ],
)
def test_everything_else_is_refused(pickled):
    with pytest.raises(pickle.UnpicklingError):
        load_arrays(io.BytesIO(b'\x80\x02' + pickled))


def test_objects_are_refused():
    for value in (os.system, np.array([object()]), np.random.default_rng(0), {1, 2}.__class__):
        with pytest.raises((pickle.UnpicklingError, ValueError)):
            load_arrays(io.BytesIO(pickle.dumps(value)))


def test_a_shared_array_stays_shared():
    array = np.arange(3)
    first, second = load_arrays(io.BytesIO(pickle.dumps([array, array])))
    assert first is second
