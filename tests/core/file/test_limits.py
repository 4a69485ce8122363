"""What a file may take: bounded by its size or by the model, and raised only by who asks for it."""

import pytest

from mmriem.core.errors import RiemError
from mmriem.core.file.limits import VARIABLE, WIDEST, limits_for

KINDS = ('decoded_bytes', 'nanoseconds', 'json_bytes', 'json_values')


@pytest.mark.parametrize('kind', KINDS)
def test_limits_grow_in_proportion_to_the_size(kind):
    first, second, third = (getattr(limits_for(size), kind) for size in (0, 1000, 2000))
    assert 0 < first < second and third - second == second - first


def test_a_factor_raises_all_of_them_together(monkeypatch):
    usual, raised = limits_for(1000), limits_for(1000, 2.5)
    assert all(getattr(raised, kind) == int(2.5 * getattr(usual, kind)) for kind in KINDS)
    monkeypatch.setenv(VARIABLE, '2.5')
    assert limits_for(1000) == raised
    assert limits_for(1000, 1.0) == usual


@pytest.mark.parametrize('text', ['much', '0', '-1', 'nan', 'inf', '1e400'])
def test_an_environment_variable_that_is_no_number_is_one_error(monkeypatch, text):
    monkeypatch.setenv(VARIABLE, text)
    with pytest.raises(RiemError, match=f'{VARIABLE}: expected a number above 0.*found {text!r}'):
        limits_for(1)


def test_a_model_may_be_decoded_from_a_file_of_any_size():
    limits = limits_for(100).with_model({'w': (2**20, 2**10), 'b': (3,)})
    assert limits.decoded_bytes == WIDEST * (2**30 + 3)
    assert limits.nanoseconds == limits_for(100).nanoseconds
    assert limits_for(100).with_model({'b': (3,)}) == limits_for(100)


def test_the_error_says_how_far_limits_must_be_raised():
    limits = limits_for(1000, 2.0)
    limits.require('json_values', limits.json_values, 'values')
    asked = 3 * limits.json_values
    with pytest.raises(RiemError, match=f'at most {limits.json_values} values, found {asked}.*{VARIABLE}=6'):
        limits.require('json_values', asked, 'values')
    limits_for(1000, 6.0).require('json_values', asked, 'values')
