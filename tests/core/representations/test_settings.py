"""Settings of encoded matrices: one spelling as JSON, bounds, versions."""

from dataclasses import dataclass
from typing import ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmriem.core.errors import RiemError
from mmriem.core.representations.bilinear.settings import BilinearSettings
from mmriem.core.representations.lattice.settings import LatticeBudget, LatticeSettings
from mmriem.core.representations.settings import CodecSettings, Key
from mmriem.core.representations.sigmoid.settings import SigmoidSettings


@dataclass(frozen=True)
class First(CodecSettings):
    representation = 'test'
    keys: ClassVar = {'size': Key(1, 9, name='width'), 'depth': Key(4, 6, usual=0)}

    size: int
    depth: int = 0


@dataclass(frozen=True)
class Second(First):
    version = 2


def test_files_hold_what_they_always_held():
    """Keys, values and their order."""
    assert list(LatticeSettings().to_json().items()) == [('period', 1)]
    whole = LatticeSettings(kernel_size=9, octave=32, lanes=4, trellis=True)
    assert list(whole.to_json().items()) == [('period', 9), ('octave', 32), ('lanes', 4), ('trellis', 1)]
    assert list(BilinearSettings(3, 5).to_json().items()) == [('rank', 3), ('state_bits', 5)]
    assert list(BilinearSettings(3, 5, -7).to_json().items()) == [('rank', 3), ('state_bits', 5), ('exponent', -7)]
    names = ['dq', 'dmu', 'shifts', 'row_blocks', 'col_blocks', 'state_bits']
    assert list(SigmoidSettings(5, 4, 3, 2, 1, 8).to_json().items()) == list(zip(names, (5, 4, 3, 2, 1, 8)))
    assert all(type(value) is int for value in whole.to_json().values())


@given(st.integers(1, 9), st.sampled_from([0, 4, 5, 6]), st.sampled_from([First, Second]))
def test_json_comes_back(size, depth, kind):
    settings = kind(size, depth)
    assert kind.from_json(settings.to_json()) == settings
    assert LatticeSettings.from_json(LatticeSettings(size, trellis=depth > 0).to_json()).trellis == (depth > 0)


@pytest.mark.parametrize(
    ('data', 'words'),
    [
        (None, r"settings of 'test': expected the keys \['width'\], found None"),
        ({}, r"settings of 'test': expected the keys \['width'\], found \[\]"),
        ({'size': 3}, r"expected the keys \['width'\], found \['size'\]"),
        ({'width': 3, 'depth': 5, 'more': 1}, r"expected the keys \['depth', 'width'\], found"),
        ({'width': 10}, "setting 'width' of 'test': expected an integer of 1 to 9, found 10"),
        ({'width': True}, "setting 'width' of 'test': expected an integer of 1 to 9, found True"),
        ({'width': 3.0}, "setting 'width' of 'test': expected an integer of 1 to 9, found 3.0"),
        ({'width': 3, 'depth': 0}, "setting 'depth' of 'test': expected an integer of 4 to 6, found 0"),
        ({'width': 3, 'version': 2}, "settings of 'test': expected version 1, found 2; read the file with the version"),
        ({'width': 3, 'version': 1}, r"expected the keys \['width'\], found \['width', 'version'\]"),
    ],
)
def test_other_json_is_refused(data, words):
    with pytest.raises(RiemError, match=words):
        First.from_json(data)


def test_a_later_version_is_told_apart():
    assert Second(3).to_json() == {'version': 2, 'width': 3} and Second.from_json({'version': 2, 'width': 3}).size == 3
    for data in ({'width': 3}, {'version': 1, 'width': 3}, {'version': 3, 'width': 3}):
        with pytest.raises(RiemError, match="settings of 'test': expected version 2, found"):
            Second.from_json(data)


@pytest.mark.parametrize('values', [(0, 0), (10, 0), (3, 1), (3.0, 0), (3, None)])
def test_values_out_of_bounds_are_refused(values):
    with pytest.raises(RiemError, match='expected an integer of'):
        First(*values)


@pytest.mark.parametrize('values', [(0, 1), (100, 0), (100, 1 << 20)])
def test_budgets_that_make_no_sense_are_refused(values):
    with pytest.raises(RiemError, match="budget of 'lattice': expected at least 1 bit"):
        LatticeBudget(*values)
