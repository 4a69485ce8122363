"""From one budget for the file to a configuration for each weight."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmriem.core.budget.plan import (
    DENSE_BITS,
    MANIFEST_BITS,
    MAX_DENSE_SHARE,
    MIN_NEURONS,
    RECORD_BITS,
    allocate,
    target_bits,
)
from mmriem.core.errors import RiemError
from mmriem.core.representations.registry import get_representation
from mmriem.core.weights.views import WeightView

# the weights of a ResNet-18 and a neck
SHAPES = [
    (64, 3, 7, 7),
    *[(64, 64, 3, 3)] * 4,
    (128, 64, 3, 3),
    *[(128, 128, 3, 3)] * 3,
    (128, 64, 1, 1),
    (256, 128, 3, 3),
    *[(256, 256, 3, 3)] * 3,
    (256, 128, 1, 1),
    (512, 256, 3, 3),
    *[(512, 512, 3, 3)] * 3,
    (512, 256, 1, 1),
    *[(256, 256, 1, 1)] * 3,
    *[(256, 256, 3, 3)] * 3,
]


def views_of(*shapes):
    return [WeightView(f'layer{number}.weight', shape) for number, shape in enumerate(shapes)]


def elements(views):
    return sum(math.prod(view.shape) for view in views)


def used(plans):
    """Bits of payloads, dense weights and records."""
    represented = sum(plan.configuration is not None for plan in plans)
    return sum(plan.bits for plan in plans) + (MANIFEST_BITS + RECORD_BITS * represented if represented else 0)


def plan(views, name, available, **options):
    return allocate(views, get_representation(name).fitter_with(**options), available)


# ---- what the user asks for


def test_ratio_refers_to_everything_and_bits_to_the_weights():
    assert target_bits(1000, 900, 0.25, None) == 0.25 * 32 * 1000
    assert target_bits(1000, 900, 1, None) == 32000
    assert target_bits(1000, 900, None, 2.5) == 2.5 * 900


@pytest.mark.parametrize(
    ('ratio', 'bits', 'words'),
    [
        (None, None, 'either a ratio, bits per weight or a size'),
        (0.5, 2.0, 'either a ratio, bits per weight or a size'),
        (0.0, None, 'ratio: expected'),
        (-0.1, None, 'found -0.1'),
        (1.01, None, 'at most 1'),
        (float('nan'), None, 'found nan'),
        (None, 0, 'bits: expected'),
        (None, -2, 'found -2'),
        (None, 33, 'at most 32'),
        (None, float('nan'), 'found nan'),
    ],
)
def test_what_cannot_be_asked_for(ratio, bits, words):
    with pytest.raises(RiemError, match=words):
        target_bits(1000, 900, ratio, bits)


# ---- allocation


@pytest.mark.parametrize('name', ['sigmoid', 'bilinear'])
@pytest.mark.parametrize('ratio', [0.05, 0.1, 0.19])
def test_large_weights_use_the_budget_up_from_below(name, ratio):
    views = views_of(*SHAPES)
    available = ratio * 32 * elements(views)
    plans = plan(views, name, available)
    assert [p.view for p in plans] == views
    assert 0.99 * available <= used(plans) <= available


@pytest.mark.parametrize(('name', 'bits'), [('sigmoid', 4), ('sigmoid', 8), ('bilinear', 8)])
def test_fixed_state_bits_are_kept(name, bits):
    views = views_of(*SHAPES)
    available = 0.19 * 32 * elements(views)
    plans = plan(views, name, available, state_bits=bits)
    assert all(p.configuration.state_bits == bits for p in plans)
    assert 0.99 * available <= used(plans) <= available


@pytest.mark.parametrize('name', ['sigmoid', 'bilinear'])
def test_every_weight_gets_about_the_same_rate(name):
    views = views_of(*SHAPES[1:])
    plans = plan(views, name, 5.0 * elements(views))
    rates = [p.bits / math.prod(p.view.shape) for p in plans]
    assert all(4.2 <= rate <= 5.5 for rate in rates)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(2, 200), st.integers(2, 200)), min_size=1, max_size=8),
    st.floats(0.5, 33),
    st.sampled_from(['sigmoid', 'bilinear']),
    st.sampled_from([0, 3, 8]),
)
def test_the_budget_is_never_exceeded(shapes, rate, name, bits):
    views = views_of(*shapes)
    available = rate * elements(views)
    fitter = get_representation(name).fitter_with(state_bits=bits)
    try:
        plans = allocate(views, fitter, available)
    except RiemError as error:
        assert 'larger ratio or more bits' in str(error)
        return
    assert [p.view for p in plans] == views and used(plans) <= available
    for p in plans:
        as_dense = DENSE_BITS * math.prod(p.view.shape)
        if p.configuration is None:
            assert p.bits == as_dense
        else:
            assert p.bits == fitter.planned_bits(p.view.matrix_shape, p.configuration)
            assert p.bits + RECORD_BITS <= as_dense


@pytest.mark.parametrize('name', ['sigmoid', 'bilinear'])
def test_more_budget_never_means_fewer_bits(name):
    views = views_of(*SHAPES)
    sizes = [used(plan(views, name, rate * elements(views))) for rate in (0.5, 1, 2, 4, 8, 12, 16, 32)]
    assert sizes == sorted(sizes)
    assert sizes[-1] <= 16 * elements(views) + MANIFEST_BITS


def test_weights_with_few_neurons_stay_dense_while_they_are_a_small_part():
    narrow = [(96, 1, 3, 3), (MIN_NEURONS - 1, 256, 3, 3), (400, MIN_NEURONS - 1)]
    views = views_of((256, 256, 3, 3), *narrow, (256, 256, 3, 3), (MIN_NEURONS, 300))
    cost = DENSE_BITS * sum(math.prod(shape) for shape in narrow)
    affordable = plan(views, 'sigmoid', 1.01 * cost / MAX_DENSE_SHARE)
    scarce = plan(views, 'sigmoid', 0.99 * cost / MAX_DENSE_SHARE)
    assert [p.configuration is None for p in affordable] == [False, True, True, True, False, False]
    assert not any(p.configuration is None for p in scarce)


def test_narrow_weights_alone_are_represented():
    views = views_of((8, 400), (400, 8))
    assert all(p.configuration is not None for p in plan(views, 'bilinear', 8.0 * elements(views)))


def test_a_weight_too_small_for_states_stays_dense():
    views = views_of((256, 256, 3, 3), (17, 17))
    large, small = plan(views, 'sigmoid', 2.0 * elements(views))
    assert large.configuration is not None
    assert small.configuration is None and small.bits == DENSE_BITS * 17 * 17


@pytest.mark.parametrize('name', ['sigmoid', 'bilinear'])
def test_a_budget_that_is_too_small_is_one_error(name):
    views = views_of(*SHAPES)
    for available in (-5.0, 0.0, 8000.0, 0.02 * elements(views)):
        with pytest.raises(RiemError, match=f'{available / 8:.0f} bytes are too few .*ask for a larger ratio'):
            plan(views, name, available)


@pytest.mark.parametrize('rate', [2.0, 2.9, 3.3, 4.0, 4.7])
def test_what_rounding_down_leaves_over_is_spent(rate):
    """Afterwards not even the smallest weight could have one more rank."""
    views = views_of((128, 128, 3, 3), *[(128, 128)] * 3)
    plans = plan(views, 'bilinear', rate * elements(views), state_bits=8)
    one_more_rank = 8 * (128 + 128) + 64
    assert 0 <= rate * elements(views) - used(plans) < one_more_rank
