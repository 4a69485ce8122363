"""The bound by reverse water-filling: closed forms, and lattices that stay above it."""

import math

import pytest
import torch

from mmriem.core.errors import RiemError
from mmriem.core.metric.bound import SCALAR_LOSS, metric_eigenvalues, rate_bound, weight_bounds
from mmriem.core.representations.lattice.problem import DAMPING, Problem


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def metric_of(columns, groups=1, seed=1):
    samples = randn(groups, 4 * columns, columns, seed=seed) @ randn(columns, columns, seed=seed + 1)
    return samples.transpose(1, 2) @ samples / samples.shape[1]


def by_bisection(variances, distortion):
    low, high = 0.0, float(variances.max())
    for _ in range(200):
        theta = (low + high) / 2
        low, high = (theta, high) if float(variances.clamp_max(theta).sum()) < distortion else (low, theta)
    return 0.5 * float((variances / variances.clamp_max(theta)).log2().sum())


# ---- closed forms


@pytest.mark.parametrize('share', [1e-6, 0.01, 0.5, 1.0])
def test_of_the_identity_it_is_that_of_a_gaussian(share):
    power, rows, columns = 0.3, 6, 11
    found = rate_bound(power, torch.ones(columns), torch.ones(rows), share * power * rows * columns)
    assert found == pytest.approx(rows * columns * 0.5 * math.log2(1 / share), abs=1e-9)


def test_components_under_the_water_take_no_bits():
    """Variances 8, 4, 1 and 1/4 with theta 2: the last two are given up."""
    found = rate_bound(2.0, torch.tensor([1 / 8, 4.0, 0.5, 2.0]), torch.ones(1), 2 + 2 + 1 + 1 / 4)
    assert found == pytest.approx(0.5 * (math.log2(8 / 2) + math.log2(4 / 2)))


def test_at_high_rates_only_products_matter():
    eigenvalues, weights = torch.tensor([1.0, 4.0, 16.0]), torch.tensor([1.0, 9.0])
    distortion = 6 * 1e-3
    logs = [math.log2(a * g / 1e-3) for a in eigenvalues.tolist() for g in weights.tolist()]
    assert rate_bound(1.0, eigenvalues, weights, distortion) == pytest.approx(0.5 * sum(logs))


@pytest.mark.parametrize('share', [1e-4, 0.03, 0.4, 0.95])
def test_theta_is_exact(share):
    eigenvalues = metric_eigenvalues([metric_of(9, groups=2)])
    weights, powers = randn(8).square().double(), randn(8, seed=1).square().double()
    rows = (weights * powers).reshape(2, 4)
    variances = (rows[:, :, None] * eigenvalues[:, None]).flatten()
    distortion = share * float(variances.sum())
    assert rate_bound(powers, eigenvalues, weights, distortion) == pytest.approx(
        by_bisection(variances, distortion), rel=1e-9
    )


def test_less_distortion_takes_more_bits():
    eigenvalues, weights = torch.linspace(0, 3, 20), torch.linspace(0, 2, 10)
    total = float(eigenvalues.double().sum() * weights.double().sum())
    found = [rate_bound(1.0, eigenvalues, weights, share * total) for share in (0, 1e-9, 1e-3, 0.1, 0.5, 0.99, 1, 2)]
    assert found == sorted(found, reverse=True)
    assert found[0] == math.inf and found[-2] == pytest.approx(0, abs=1e-9) and found[-1] == 0
    assert all(left > right for left, right in zip(found[:5], found[1:6]))


def test_what_cannot_be_damaged_takes_no_bits():
    assert rate_bound(0.0, torch.ones(3), torch.ones(2), 0.0) == 0
    assert rate_bound(1.0, torch.ones(3), torch.zeros(2), 0.0) == 0


@pytest.mark.parametrize('distortion', [-1.0, math.nan])
def test_a_distortion_is_a_number_from_0_on(distortion):
    with pytest.raises(RiemError, match='distortion: expected a number from 0 on'):
        rate_bound(1.0, torch.ones(3), torch.ones(2), distortion)


# ---- of a weight matrix


def test_the_metric_is_damped_as_for_a_lattice():
    metric = metric_of(12, groups=2)
    found = metric_eigenvalues([metric[:, :5, :5], metric[:, 5:, 5:]])
    assert found.shape == (2, 12)
    first = metric[1, :5, :5].double()
    expected = torch.linalg.eigvalsh(first) + DAMPING * first.diagonal().mean()
    assert torch.allclose(found[1, :5], expected)
    pivots = Problem.of(randn(4, 12), metric).pivots.double()
    assert float(metric_eigenvalues([metric]).log().sum()) == pytest.approx(2 * float(pivots.log().sum()), rel=1e-5)


def test_rows_of_other_spreads_are_known_to_the_second_bound():
    weight = randn(4, 50) * torch.tensor([0.1, 1.0, 1.0, 10.0])[:, None]
    bounds = weight_bounds(weight, None, None, 200 * 1e-4)
    squares = weight.double().square()
    assert bounds.matrix == pytest.approx(100 * math.log2(float(squares.mean()) / 1e-4))
    assert bounds.rows == pytest.approx(25 * float((squares.mean(1) / 1e-4).log2().sum()))
    assert bounds.rows < bounds.matrix
    even = weight / squares.mean(1).sqrt().float()[:, None]
    assert weight_bounds(even, None, None, 0.02).rows == pytest.approx(weight_bounds(even, None, None, 0.02).matrix)


def test_of_a_wrong_metric_is_one_error():
    with pytest.raises(RiemError, match='square blocks over 5 columns'):
        weight_bounds(randn(4, 5), torch.eye(6), None, 1.0)


# ---- lattices


@pytest.mark.parametrize('step', [0.5, 2.0])
def test_a_lattice_is_above_the_bound(step):
    weight, metric, weights = randn(64, 96), metric_of(96, groups=2), randn(64, seed=5).square() + 0.1
    lattice, distortion = Problem.of(weight, metric, weights).solve(step)
    bounds = weight_bounds(weight, metric, weights, distortion)
    assert lattice.payload_bits() > max(bounds) and min(bounds) > 0
    assert bounds.matrix == pytest.approx(bounds.rows, rel=0.05)


def test_at_high_rates_a_lattice_loses_a_quarter_of_a_bit():
    weight = randn(256, 256)
    lattice, distortion = Problem.of(weight, torch.eye(256)).solve(0.1)
    gap = (lattice.payload_bits() - weight_bounds(weight, torch.eye(256), None, distortion).matrix) / weight.numel()
    assert pytest.approx(0.2546, abs=1e-4) == SCALAR_LOSS
    assert SCALAR_LOSS < gap < SCALAR_LOSS + 0.04  # the dead zone and the coder's learning
