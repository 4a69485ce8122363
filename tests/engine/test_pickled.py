import pickle
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from mmengine.config import ConfigDict
from mmengine.logging import HistoryBuffer

from mmriem.engine.pickled import load_plain


class Reduced:
    """Pickles as a call that the test chooses."""

    def __init__(self, *reduced):
        self.reduced = reduced

    def __reduce__(self):
        return self.reduced


class Stranger:
    pass


def save(tmp_path, tree):
    path = tmp_path / 'tree.pth'
    torch.save(tree, path)
    return path


numbers = st.one_of(hnp.integer_dtypes(endianness='?'), hnp.floating_dtypes(endianness='?', sizes=(16, 32, 64)))
dtypes = st.one_of(numbers, hnp.boolean_dtypes(), hnp.unicode_string_dtypes(endianness='?'))
arrays = hnp.arrays(dtypes, hnp.array_shapes(min_dims=0, min_side=0, max_side=4))
leaves = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.binary(), arrays)
trees = st.recursive(
    leaves,
    lambda inner: st.one_of(st.lists(inner), st.tuples(inner, inner), st.dictionaries(st.text(), inner)),
)


@settings(max_examples=200, deadline=None)
@given(trees)
def test_trees_come_back_as_they_were(tmp_path_factory, tree):
    read = load_plain(save(tmp_path_factory.getbasetemp(), [tree, np.float64(0.5), np.float64(0.5)]))[0]
    same(read, tree)


def same(read, tree):
    assert type(read) is type(tree)
    if isinstance(tree, (list, tuple)):
        assert len(read) == len(tree)
        for one, other in zip(read, tree):
            same(one, other)
    elif isinstance(tree, dict):
        assert list(read) == list(tree)
        for key in tree:
            same(read[key], tree[key])
    elif isinstance(tree, np.ndarray):
        assert read.dtype == tree.dtype
        np.testing.assert_array_equal(read, tree)
    else:
        assert read == tree or (read != read and tree != tree)


@pytest.mark.parametrize('value', [np.float64(2.5), np.int32(-7), np.bool_(True), np.str_('größe'), np.float16(0.1)])
def test_numpy_scalars(tmp_path, value):
    read = load_plain(save(tmp_path, value))
    assert type(read) is type(value) and read == value


def test_history_buffer_works_on(tmp_path):
    history = HistoryBuffer([1.0, 2.0, 6.0], [1, 1, 2], max_length=10)
    read = load_plain(save(tmp_path, {'loss': history}))['loss']
    assert read.mean() == history.mean() and read.current() == 6.0 and read.max_length == 10
    read.update(8.0)
    assert read.max() == 8.0


def test_config_dict_becomes_a_dict(tmp_path):
    read = load_plain(save(tmp_path, ConfigDict(a=1, b=dict(c=(1, 2)))))
    assert type(read) is dict and read == {'a': 1, 'b': {'c': (1, 2)}}


def test_names_of_numpy_1(tmp_path):
    tree = {'score': np.float64(0.25), 'log': np.arange(4.0), 'history': HistoryBuffer([3.0], [1])}
    new, old = save(tmp_path, tree), tmp_path / 'numpy1.pth'
    with zipfile.ZipFile(new) as source, zipfile.ZipFile(old, 'w') as target:
        for name in source.namelist():
            data = source.read(name)
            if name.endswith('data.pkl'):
                data = data.replace(b'numpy._core.multiarray', b'numpy.core.multiarray')
            target.writestr(name, data)
    read = load_plain(old)
    assert read['score'] == 0.25 and read['log'].tolist() == [0, 1, 2, 3] and read['history'].mean() == 3.0


def test_memory_flags_of_a_dtype_are_not_taken(tmp_path):
    before = np.dtype('f8').flags
    forged = (
        3,
        '<',
        None,
        None,
        None,
        -1,
        -1,
        63,
    )  # numpy's own __setstate__ sets these flags on a float dtype
    read = load_plain(save(tmp_path, Reduced(np.dtype, ('f8', False, True), forged)))
    assert read == np.float64 and read.flags == before == np.dtype('f8').flags


def test_shared_lists(tmp_path):
    shared = [np.float32(1.0)]
    read = load_plain(save(tmp_path, {'a': shared, 'b': (shared, shared)}))
    assert read['a'] is read['b'][0] is read['b'][1]


def test_a_value_that_contains_itself_is_refused(tmp_path):
    for tree in ([], {}):
        inner = (tree,)
        tree.append(inner) if isinstance(tree, list) else tree.update(a=inner)
        with pytest.raises(ValueError, match='a value that contains itself'):
            load_plain(save(tmp_path, {'meta': tree}))


def test_values_are_at_most_a_hundred_deep_whatever_the_order_in_which_they_are_met(tmp_path):
    chain = [[]]
    for _ in range(300):
        chain.append([chain[-1]])
    assert load_plain(save(tmp_path, chain[90])) == chain[90]
    for tree in (chain[300], chain, chain[::-1], {'a': tuple(chain)}):
        with pytest.raises(ValueError, match='nested more than 100 deep'):
            load_plain(save(tmp_path, tree))


def test_attributes_of_tensors_are_dropped(tmp_path):
    tensor = torch.ones(2)
    tensor.riem = 'forged'
    assert not hasattr(load_plain(save(tmp_path, {'w': tensor}))['w'], 'riem')


@pytest.mark.parametrize(
    'reduced',
    [
        (getattr, (HistoryBuffer, '__init__')),
        (getattr, (np.dtype, 'mean')),
        (eval, ('1 + 1',)),
        (print, ('hello',)),
        (Stranger, ()),
    ],
)
def test_other_names_are_refused(tmp_path, reduced):
    path = save(tmp_path, Reduced(*reduced))
    with pytest.raises(pickle.UnpicklingError, match='GLOBAL'):
        load_plain(path)


@pytest.mark.parametrize('array', [np.array([None, 'x'], dtype=object), np.zeros(2, dtype=[('a', 'f8')])])
def test_only_plain_dtypes(tmp_path, array):
    with pytest.raises(Exception, match='dtype'):
        load_plain(save(tmp_path, array))


def test_what_other_code_allows_torch_to_read_is_neither_allowed_nor_changed(tmp_path):
    path = save(tmp_path, Stranger())
    with torch.serialization.safe_globals([Stranger]):
        allowed = set(torch.serialization.get_safe_globals())
        with pytest.raises(pickle.UnpicklingError):
            load_plain(path)
        assert set(torch.serialization.get_safe_globals()) == allowed
