"""One scale for all lattices: steps by sensitivity, and a search that uses a budget up from below."""

import math

import pytest
import torch

from mmriem.core.budget.scale import CLOSE_ENOUGH, FINEST, TEMPER, TURNS, relative_steps, search
from mmriem.core.errors import RiemError
from mmriem.core.representations.lattice.problem import Problem


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Measure:
    """A measure of the scale, with the scales that were tried."""

    def __init__(self, function):
        self._function = function
        self.scales = []

    def solve(self, scale):
        self.scales.append(scale)
        return {'scale': scale}

    def __call__(self, solutions):
        return self._function(solutions['scale'])


def rounded(scale):
    """Bytes that come in pieces."""
    return 64 * math.ceil(200 / scale**0.7)


FALLING = {
    'halves with the scale': lambda scale: 1000 / scale,
    'steep': lambda scale: 1000 / scale**3,
    'flat': lambda scale: 1000 / scale**0.15,
    'of an entropy': lambda scale: 5e4 * math.log2(1 + (2 / scale) ** 2) + 300,
    'in pieces': rounded,
    'steeper and steeper': lambda scale: 1000 * math.exp(-scale),
}
RISING = {
    'error': lambda scale: 0.2 * scale,
    'that saturates': lambda scale: 1.5 * scale / (1 + scale**2) ** 0.5,
    'steep': lambda scale: 0.1 * scale**2.5,
    'flat': lambda scale: 0.1 * scale**0.3,
}


# ---- the search


@pytest.mark.parametrize('start', [0.01, 1.0, 50.0])
@pytest.mark.parametrize('name', FALLING)
def test_a_falling_measure_meets_its_target_from_below(name, start):
    if name == 'steeper and steeper':
        start = min(start, 2.0)
    measure = Measure(FALLING[name])
    target = FALLING[name](0.6)
    scale, solutions = search(measure.solve, measure, target, start)
    assert solutions == {'scale': scale}
    assert CLOSE_ENOUGH * target <= measure(solutions) <= target
    assert len(measure.scales) <= TURNS and measure.scales[0] == start


@pytest.mark.parametrize('start', [0.05, 1.0, 20.0])
@pytest.mark.parametrize('name', RISING)
def test_a_rising_measure_meets_its_target_from_below(name, start):
    measure = Measure(RISING[name])
    target = RISING[name](0.6)
    scale, solutions = search(measure.solve, measure, target, start, falls=False)
    assert solutions == {'scale': scale}
    assert CLOSE_ENOUGH * target <= measure(solutions) <= target
    assert len(measure.scales) <= TURNS


def test_a_good_start_is_taken_at_once():
    measure = Measure(lambda scale: 100 / scale)
    assert search(measure.solve, measure, 100.5)[0] == 1.0 and measure.scales == [1.0]


def test_a_target_between_two_steps_is_met_as_well_as_can_be():
    measure = Measure(lambda scale: 1000 if scale < 0.7 else 500)
    _, solutions = search(measure.solve, measure, 900)
    assert measure(solutions) == 500 and len(measure.scales) <= TURNS


def test_more_than_the_finest_step_needs_is_no_error():
    measure = Measure(lambda scale: 100.0)
    scale, _ = search(measure.solve, measure, 1e6)
    assert scale == FINEST and min(measure.scales) == FINEST


def test_no_error_at_all_is_within_any_tolerance():
    measure = Measure(lambda scale: 0.0)
    _, solutions = search(measure.solve, measure, 0.1, falls=False)
    assert measure(solutions) == 0


@pytest.mark.parametrize('falls', [True, False])
def test_a_target_out_of_reach_is_one_error(falls):
    measure = Measure(lambda scale: 100.0)
    with pytest.raises(RiemError, match=r'budget: .* found 90; ask for more'):
        search(measure.solve, measure, 90, falls=falls)
    assert len(measure.scales) <= TURNS and all(0 < scale < math.inf for scale in measure.scales)


# ---- relative steps


def test_steps_of_equal_sensitivity_are_proportional_to_the_weights():
    weight = randn(20, 30)
    problems = {'small': Problem.of(0.1 * weight), 'large': Problem.of(10 * weight)}
    steps = relative_steps(problems, {'small': False, 'large': False})
    assert steps['small'] == pytest.approx(0.1 * float(weight.std(unbiased=False)), rel=1e-5)
    assert steps['large'] / steps['small'] == pytest.approx(100, rel=1e-5)


def test_what_is_more_sensitive_has_finer_steps():
    """Four times the distortion: half the step would be best, of which the tempered part is taken."""
    weight = randn(20, 30)
    problems = {
        'plain': Problem.of(weight, torch.eye(30)),
        'inputs': Problem.of(weight, 4 * torch.eye(30)),
        'outputs': Problem.of(weight, torch.eye(30), torch.full((20,), 4.0)),
    }
    steps = relative_steps(problems, dict.fromkeys(problems, True))
    assert steps['inputs'] / steps['plain'] == pytest.approx(0.5**TEMPER, rel=1e-4)
    assert steps['outputs'] / steps['plain'] == pytest.approx(0.5**TEMPER, rel=1e-4)
    product = math.prod(steps.values()) / problems['plain'].spread ** 3
    assert product == pytest.approx(1.0, rel=1e-4)


def test_a_weight_that_is_twice_as_large_and_counts_a_quarter_changes_its_step_by_two():
    """The same network with other units: the optimum and equal relative errors agree."""
    weight = randn(20, 30)
    problems = {'one': Problem.of(weight, torch.eye(30)), 'two': Problem.of(2 * weight, torch.eye(30) / 4)}
    steps = relative_steps(problems, dict.fromkeys(problems, True))
    assert steps['two'] / steps['one'] == pytest.approx(2.0, rel=1e-4)


def test_a_weight_without_a_metric_is_averagely_sensitive():
    weight = randn(20, 30)
    problems = {
        'low': Problem.of(weight, torch.eye(30)),
        'high': Problem.of(weight, 1e4 * torch.eye(30)),
        'unknown': Problem.of(weight),
    }
    steps = relative_steps(problems, {'low': True, 'high': True, 'unknown': False})
    assert steps['unknown'] == pytest.approx(problems['unknown'].spread, rel=1e-6)
    assert steps['high'] < steps['unknown'] < steps['low']
    assert steps['high'] * steps['low'] == pytest.approx(steps['unknown'] ** 2, rel=1e-4)


def test_a_weight_of_zeros_has_a_step():
    steps = relative_steps({'zeros': Problem.of(torch.zeros(4, 5))}, {'zeros': True})
    assert 0 < steps['zeros'] < math.inf
