"""Trellis-coded quantisation: the search finds the best path, which beats rounding, and survives the file."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmriem.core.coding import trellis
from mmriem.core.coding.trellis import indices_of, magnitudes_of
from mmriem.core.errors import RiemError
from mmriem.core.representations.lattice import trellis_search
from mmriem.core.representations.lattice.codec import Lattice
from mmriem.core.representations.lattice.live import LatticeStates
from mmriem.core.representations.lattice.problem import Problem
from mmriem.core.representations.lattice.settings import LatticeSettings
from mmriem.core.representations.lattice.trellis_search import Columns

LIVE = LatticeStates()


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(0, 1, shape).astype(np.float32)


def search(weight, table, factor=None, steps=None, pivots=None):
    columns = weight.shape[1]
    steps, pivots = (np.ones(columns, np.float32) if x is None else x for x in (steps, pivots))
    known = Columns(factor, steps, pivots, table)
    return trellis_search.search(weight, weight, known, np.zeros(len(weight), np.uint8))


def test_the_trellis_is_one():
    """Each state is reached from two, by paths that part and meet again only after three steps and more."""
    assert sorted(trellis.NEXT.ravel().tolist()) == sorted([*range(8)] * 2)
    for state in range(8):
        ends = [{int(trellis.NEXT[state, parity])} for parity in (0, 1)]
        for _ in range(2):
            assert not ends[0] & ends[1]
            ends = [{int(to) for end in part for to in trellis.NEXT[end]} for part in ends]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 20), st.integers(0, 30), st.floats(0, 1000), st.integers(0, 1000))
def test_indices_and_magnitudes(rows, columns, scale, seed):
    indices = np.abs(np.rint(scale * normal(rows, columns, seed=seed))).astype(np.int64)
    magnitudes = magnitudes_of(indices)
    assert ((magnitudes >> 1) == indices).all()
    assert (indices_of(magnitudes) == indices).all()


def test_integers_off_the_paths():
    magnitudes = magnitudes_of(np.abs(np.rint(normal(4, 9))).astype(np.int64))
    magnitudes[2, 5] += 1
    assert indices_of(magnitudes) is None
    with pytest.raises(RiemError, match='paths of the trellis'):
        Lattice.of(magnitudes, 1.0, np.zeros(4, np.int32), np.zeros(9, np.int32), 1, trellis=True).to_payload()


@pytest.mark.parametrize('cancels', [False, True])
def test_the_path_is_the_best_of_all(cancels):
    """With cancellation a search keeps the best path to each state; for three columns these are all."""
    weight = 2 * normal(1, 3, seed=5)
    factor = np.array([[1, 0.4, -0.3], [0, 1, 0.6], [0, 0, 1]], np.float32) if cancels else None
    pivots = np.array([1.0, 0.8, 1.3], np.float32)
    table = trellis_search.prices(weight)

    def cost(codes):
        indices = indices_of(np.abs(np.array([codes])))
        if indices is None:
            return math.inf
        wanted, total = weight[0].astype(float), 0.0
        for column, code in enumerate(codes):
            total += pivots[column] ** 2 * ((wanted[column] - code) ** 2 + table[code % 2, indices[0, column]])
            if cancels:
                wanted[column + 1 :] += factor[column, column + 1 :] * (weight[0, column] - code)
        return total

    best = min(itertools.product(range(-8, 9), repeat=3), key=cost)
    found, _ = search(weight, table, factor, pivots=pivots)
    assert cost(found[0].astype(int)) == pytest.approx(cost(best))


def entropy(indices, magnitudes):
    shares = np.unique(indices, return_counts=True)[1] / indices.size
    return -(shares * np.log2(shares)).sum() + (magnitudes > 0).mean()


@pytest.mark.parametrize(('step', 'most'), [(1.07, 0.30), (0.69, 0.21), (0.53, 0.17), (0.26, 0.12)])
def test_bits_above_the_bound_of_white_noise(step, most):
    """Rounding has 0.37, 0.31, 0.28 and 0.26 at the same 1, 1.65, 2 and 3 bits."""
    weight = normal(200, 400) / np.float32(step)
    codes, errors = search(weight, trellis_search.prices(weight))
    magnitudes = np.abs(codes).astype(np.int64)
    bits = entropy(indices_of(magnitudes), magnitudes)
    bound = -0.5 * math.log2(errors.sum() * step**2 / weight.size)
    assert 0.0 < bits - bound < most
    assert errors.sum() == pytest.approx(((weight - codes).astype(float) ** 2).sum(), rel=1e-4)


def metric(columns, seed=0):
    inputs = torch.from_numpy(normal(3 * columns, columns, seed=seed)) * torch.linspace(2, 0.2, columns)
    inputs = inputs.cumsum(1)
    return inputs.T @ inputs / len(inputs)


@pytest.mark.parametrize('groups', [1, 4])
def test_a_lattice_along_the_trellis_beats_rounding(groups):
    weight, known = torch.from_numpy(normal(64, 160, seed=2)), metric(160)
    known = known.expand(groups, -1, -1)
    weights = torch.from_numpy(np.exp(normal(64, seed=3)))
    plain, before = Problem.of(weight, known, weights, 4).solve(0.9)
    made, distortion = Problem.of(weight, known, weights, 4, trellis=True).solve(0.9)
    error = (weight - made.decode()).double().reshape(groups, -1, 160)
    damped = known.double() + 0.01 * known.diagonal(dim1=1, dim2=2).mean() * torch.eye(160)
    own = (weights.reshape(groups, -1) * ((error @ damped) * error).sum(2)).sum()
    assert distortion == pytest.approx(float(own), rel=1e-3)
    assert made.payload_bits() < 1.03 * plain.payload_bits()
    assert distortion < 0.9 * before
    back = Lattice.from_payload(made.shape, made.settings, made.to_payload())
    assert made.settings == back.settings == LatticeSettings(4, trellis=True)
    assert made.settings_json() == {'period': 4, 'trellis': 1}
    assert (back.codes == made.codes).all() and torch.equal(back.decode(), made.decode())


def test_states_of_a_lattice_along_the_trellis():
    made, _ = Problem.of(torch.from_numpy(normal(20, 30)), trellis=True).solve(0.9)
    assert not LIVE.can_train_integers(made)
    again = LIVE.from_states(made.states(), None)
    assert again.to_payload() == made.to_payload() and torch.equal(again.decode(), made.decode())
    states = made.states()
    states['z'][3, 4] += 1  # as training would
    trained = LIVE.from_states(states, None)
    assert LIVE.can_train_integers(trained) and trained.settings == LatticeSettings()
    back = Lattice.from_payload(trained.shape, trained.settings, trained.to_payload())
    assert (back.codes == states['z'].numpy()).all()


def test_constant_and_zero_weights():
    for value in (0.0, 3.0):
        problem = Problem.of(torch.full((6, 10), value), metric(10), trellis=True)
        made, distortion = problem.solve(problem.spread or 1.0)
        assert (made.decode() - value).abs().max() <= value / 100 and distortion <= 100
        back = Lattice.from_payload(made.shape, made.settings, made.to_payload())
        assert torch.equal(back.decode(), made.decode())
