"""The lattice representation: exact payloads, rounding that is best in the metric, budgets that are held."""

import hashlib
import math
import struct

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmriem.core.coding import entropy
from mmriem.core.coding.exact import powers_of_two
from mmriem.core.errors import RiemError
from mmriem.core.representations.lattice import problem as problem_module
from mmriem.core.representations.lattice.codec import DECODED, MANY, Lattice
from mmriem.core.representations.lattice.fitter import LatticeFitter
from mmriem.core.representations.lattice.live import LatticeStates
from mmriem.core.representations.lattice.problem import DAMPING, DEAD_ZONE, Problem
from mmriem.core.representations.lattice.representation import LATTICE
from mmriem.core.representations.lattice.settings import LatticeBudget, LatticeSettings
from mmriem.core.representations.registry import get_representation

FITTER, LIVE = LatticeFitter(), LatticeStates()

HEADER = 12


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def metric_of(columns, groups=None, seed=1, samples=None):
    """A metric with strong correlations, ``(in, in)`` or ``(groups, in, in)``."""
    mixing = randn(columns, columns, seed=seed) / columns**0.5 + 1.5 * randn(columns, 1, seed=seed + 1)
    samples = randn(groups or 1, samples or 4 * columns, columns, seed=seed + 2) @ mixing.T
    found = samples.transpose(1, 2) @ samples / samples.shape[1]
    return found if groups else found[0]


def damped(block):
    block = block.double()
    return block + DAMPING * block.diagonal().mean() * torch.eye(len(block), dtype=torch.float64)


def distortion_of(error, block, weights=None):
    """``sum_i g_i e_i^T A e_i``, in float64."""
    error = error.double()
    each = ((error @ block.double()) * error).sum(1)
    return float((each * (1.0 if weights is None else weights.double())).sum())


def plain(weight, step):
    """Rounding of each weight by itself, with the dead zone."""
    return weight.sign() * (weight.abs() / step + 0.5 - DEAD_ZONE).floor()


def small(kernel_size=1):
    """Eight rows of integers, all sizes of steps."""
    codes = (2.5 * randn(8, 12, seed=3)).round().to(torch.int32).numpy()
    rows = np.array([0, 1, -1, 5, -9, 16, 2, -30], np.int32)
    columns = np.array([3, 0, 0, -2, 7, 1, -11, 4, 0, 8, -8, 40], np.int32)
    return Lattice.of(codes, 0.0173, rows, columns, kernel_size)


# ---- the payload


@pytest.mark.parametrize('kernel_size', [1, 3, 12])
@pytest.mark.parametrize('bare', [True, False])
def test_a_payload_comes_back(kernel_size, bare):
    made = small(kernel_size)
    if bare:
        made = Lattice.of(made.codes, 0.5, np.zeros(8, np.int32), np.zeros(12, np.int32), kernel_size)
    payload = made.to_payload()
    back = Lattice.from_payload((8, 12), LatticeSettings(kernel_size), payload)
    assert (back.codes == made.codes).all() and back.shape == (8, 12) and back.settings == LatticeSettings(kernel_size)
    assert torch.equal(back.decode(), made.decode())
    assert back.to_payload() == payload and back.payload_bits() == 8 * len(payload) and back.symbols == 96
    # the integers are written anew, too
    again = Lattice.of(back.codes, back.step, back.row_exponents, back.column_exponents, kernel_size)
    assert again.to_payload() == payload


def test_a_matrix_is_the_product_of_steps_and_integers_rounded_once():
    made = small()
    exact = np.array(
        [
            [
                np.float32(float(np.float32(0.0173)) * 2 ** (row / 4) * 2 ** (column / 4) * code)
                for code, column in zip(codes, made.column_exponents)
            ]
            for codes, row in zip(made.codes.tolist(), made.row_exponents)
        ]
    )
    decoded = made.decode()
    assert decoded.dtype == torch.float32 and decoded.shape == (8, 12)
    np.testing.assert_allclose(decoded.numpy(), exact, rtol=2**-23)
    plain = Lattice.of(made.codes, 0.25, np.zeros(8, np.int32), np.zeros(12, np.int32), 1)
    assert (plain.decode().numpy() == 0.25 * made.codes).all()


@pytest.mark.parametrize(('rows', 'columns'), [(2 * DECODED // 700 + 5, 700), (3, DECODED + 1)])
def test_parts_of_a_large_matrix_decode_as_the_whole(rows, columns):
    codes = (3 * randn(rows, columns)).round().to(torch.int32).numpy()
    exponents = [np.arange(count, dtype=np.int32) % 23 - 11 for count in (rows, columns)]
    made = Lattice.of(codes, 0.0173, *exponents, 1)
    by_row, by_column = (powers_of_two(exponent, 4) for exponent in exponents)
    expected = (float(np.float32(0.0173)) * by_row[:, None] * by_column * codes).astype(np.float32)
    back = Lattice.from_payload(made.shape, made.settings, made.to_payload())
    for lattice_ in (made, back):
        assert np.array_equal(lattice_.decode().numpy(), expected)
    assert (made.codes.dtype, back.codes.dtype) == (np.int32, np.int8) and (made.codes == back.codes).all()


def test_the_payload_is_what_it_always_was():
    payload = small(3).to_payload()
    assert payload[:HEADER] == struct.pack('<fII', 0.0173, *struct.unpack_from('<II', payload, 4))
    bits = small(3).decode().numpy().tobytes()
    assert (hashlib.sha256(payload).hexdigest(), hashlib.sha256(bits).hexdigest()) == GOLDEN


GOLDEN = (
    '186d81e9dfde0b01711de4805d3fd625cfb5d2b0a21c4184cfdb8404f68edde7',
    '13cd52f675a69b4be2db8957774484634335715958a5bc968aaba44cce3d8e1b',
)


@pytest.mark.parametrize('bare', [True, False])
def test_every_cut_is_refused(bare):
    made = small()
    if bare:
        made = Lattice.of(made.codes, 0.5, np.zeros(8, np.int32), np.zeros(12, np.int32), 1)
    payload = made.to_payload()
    for length in range(len(payload)):
        with pytest.raises(RiemError):
            Lattice.from_payload((8, 12), LatticeSettings(1), payload[:length])
    with pytest.raises(RiemError):
        Lattice.from_payload((8, 12), LatticeSettings(1), payload + bytes(1))


@pytest.mark.parametrize('step', [float('nan'), float('inf'), -float('inf'), -0.5, 0.0, -0.0])
def test_steps_that_make_no_sense_are_refused(step):
    payload = small().to_payload()
    with pytest.raises(RiemError, match='finite step above 0'):
        Lattice.from_payload((8, 12), LatticeSettings(1), struct.pack('<f', step) + payload[4:])


def test_large_matrices_are_dealt_to_lanes():
    rows, columns = 256, MANY // 256
    codes = np.random.default_rng(4).integers(-2, 3, (rows, columns)).astype(np.int32)
    exponents = np.zeros(rows, np.int32), np.zeros(columns, np.int32)
    large, smaller = (
        Lattice.of(codes, 0.5, *exponents, 1),
        Lattice.of(codes[1:], 0.5, exponents[0][1:], exponents[1], 1),
    )
    assert large.settings == LatticeSettings(lanes=4) and smaller.settings == LatticeSettings()
    # as in files that were written before there were lanes
    single = Lattice(codes, 0.5, *exponents, LatticeSettings())
    assert single.settings == LatticeSettings()
    assert 0 < len(large.to_payload()) - len(single.to_payload()) < 40
    for made in (large, smaller, single):
        back = Lattice.from_payload(made.shape, made.settings, made.to_payload())
        assert (back.codes == made.codes).all() and torch.equal(back.decode(), made.decode())
        assert back.settings == made.settings
    with pytest.raises(RiemError):
        Lattice.from_payload(single.shape, large.settings, single.to_payload())


@pytest.mark.parametrize('lengths', [(0xFFFFFFFF, 0), (0, 0xFFFFFFFF), (0xFFFFFFFF, 0xFFFFFFFF), (1, 1), (200, 0)])
def test_wrong_lengths_of_the_exponents_are_refused(lengths):
    payload = small().to_payload()
    with pytest.raises(RiemError):
        Lattice.from_payload((8, 12), LatticeSettings(1), payload[:4] + struct.pack('<II', *lengths) + payload[HEADER:])


@pytest.mark.parametrize('where', [0, 1])
@pytest.mark.parametrize('value', [401, -401, 1 << 30, -(1 << 30)])
def test_steps_out_of_range_are_refused(where, value):
    vectors = [b'', b'']
    exponents = np.zeros((8, 12)[where], np.int32)
    exponents[2] = value
    vectors[where] = entropy.encode_vector(exponents)
    payload = struct.pack('<fII', 0.5, *map(len, vectors)) + b''.join(vectors) + entropy.encode(small().codes)
    with pytest.raises(RiemError, match='-400 to 400'):
        Lattice.from_payload((8, 12), LatticeSettings(1), payload)


@pytest.mark.parametrize(
    'chosen',
    [
        *[{}, {'period': 0}, {'period': 5}, {'period': 1.0}, {'period': True}, {'period': 1, 'more': 2}],
        *[{'period': 1, 'lanes': 2}, {'period': 1, 'lanes': 1}, None],
    ],
)
def test_settings_that_do_not_fit_are_refused(chosen):
    with pytest.raises(RiemError):
        Lattice.from_record((8, 12), chosen, small().to_payload())


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_damaged_payloads_are_an_error_or_a_matrix(data):
    payload = bytearray(small(3).to_payload())
    for _ in range(data.draw(st.integers(1, 3))):
        payload[data.draw(st.integers(0, len(payload) - 1))] = data.draw(st.integers(0, 255))
    try:
        found = Lattice.from_payload((8, 12), LatticeSettings(3), bytes(payload))
    except RiemError:
        return
    assert found.decode().shape == (8, 12) and found.codes.shape == (8, 12)


# ---- states


def test_states_regenerate_the_matrix():
    made = small()
    states = made.states()
    assert tuple(states) == LIVE.state_names and all(state.dtype == torch.float32 for state in states.values())
    torch.testing.assert_close(LIVE.regenerate(states), made.decode(), rtol=1e-6, atol=0)
    scaled = LIVE.regenerate(LIVE.scaled_states(states, -2.5, 0.0))
    torch.testing.assert_close(scaled, -2.5 * made.decode(), rtol=1e-6, atol=0)


def test_random_states_have_the_sizes_of_a_fit():
    chosen = FITTER.configure((8, 12), 500, 3)
    states = LIVE.random_states((8, 12), chosen)
    expected = FITTER.fit(randn(8, 12), chosen).states()
    assert {name: state.shape for name, state in states.items()} == {
        name: state.shape for name, state in expected.items()
    }
    assert torch.equal(states['z'], states['z'].round()) and float(states['z'].std()) > 0.5


# ---- rounding


@pytest.mark.parametrize('step', [0.05, 0.7, 3.0])
def test_without_a_metric_each_weight_is_rounded_by_itself(step):
    weight = randn(30, 40)
    made, distortion = Problem.of(weight).solve(step)
    expected = plain(weight, np.float32(step))
    assert (made.codes == expected.numpy()).all() and made.codes.dtype == np.int32
    assert distortion == pytest.approx(distortion_of(weight - made.decode(), torch.eye(40)), rel=1e-4)
    assert not made.row_exponents.any() and not made.column_exponents.any()


def test_the_dead_zone_by_hand(monkeypatch):
    monkeypatch.setattr(problem_module, 'DEAD_ZONE', 0.07)
    weight = torch.tensor([[0.0, 0.49, 0.56, 0.58, -0.56, -0.58, 1.56, -1.58, 7.5]])
    assert Problem.of(weight).solve(1.0)[0].codes.tolist() == [[0, 0, 0, 1, 0, -1, 1, -2, 7]]


def test_a_diagonal_metric_changes_no_integer():
    weight = randn(30, 40)
    metric = torch.diag(randn(40, seed=4).square() + 0.1)
    made, distortion = Problem.of(weight, metric).solve(0.4)
    assert (made.codes == plain(weight, np.float32(0.4)).numpy()).all()
    assert distortion == pytest.approx(distortion_of(weight - made.decode(), damped(metric)), rel=1e-4)


@pytest.mark.parametrize('step', [0.3, 1.0])
def test_a_correlated_metric_makes_the_distortion_smaller_than_plain_rounding(step):
    weight, metric, weights = randn(48, 60), metric_of(60), randn(48, seed=5).square() + 0.01
    made, distortion = Problem.of(weight, metric, weights).solve(step)
    error = weight - made.decode()
    assert distortion == pytest.approx(distortion_of(error, damped(metric), weights), rel=1e-3)
    by_itself = weight - plain(weight, step) * step
    assert distortion < 0.35 * distortion_of(by_itself, damped(metric), weights)
    assert distortion_of(error, metric, weights) < 0.35 * distortion_of(by_itself, metric, weights)


@pytest.mark.parametrize('columns', [1, 7, 127, 128, 129, 300])
def test_what_defines_cancellation_holds_for_every_column(columns):
    """Each component of ``e R`` is within half a step, and the dead zone, of zero (Babai's nearest plane)."""
    weight, metric, step = randn(6, columns), metric_of(columns), 0.25
    made, _ = Problem.of(weight, metric).solve(step)
    upper = torch.linalg.cholesky(damped(metric).flip(0, 1)).flip(0, 1)
    assert float(upper.tril(-1).abs().max()) == 0
    residual = (weight - made.decode()).double() @ upper
    bound = (0.5 + DEAD_ZONE) * step * upper.diagonal()
    assert (residual.abs() <= bound * (1 + 1e-3)).all()


def test_groups_of_rows_are_problems_of_their_own(monkeypatch):
    monkeypatch.setattr(problem_module, 'ROW_POWER', 0.0)  # row steps are relative to the rows of all groups
    weight, metric, weights = randn(12, 30), metric_of(30, groups=3), randn(12, seed=5).square()
    made, distortion = Problem.of(weight, metric, weights).solve(0.5)
    parts = [Problem.of(weight[4 * k : 4 * k + 4], metric[k], weights[4 * k : 4 * k + 4]).solve(0.5) for k in range(3)]
    assert (made.codes == np.concatenate([part.codes for part, _ in parts])).all()
    assert distortion == pytest.approx(sum(its for _, its in parts), rel=1e-5)
    assert not (made.codes == Problem.of(weight, metric.mean(0), weights).solve(0.5)[0].codes).all()


def test_blocks_of_columns_are_problems_of_their_own():
    weight = randn(12, 50)
    blocks = [metric_of(size, groups=2, seed=size) for size in (20, 13, 17)]
    made, distortion = Problem.of(weight, blocks).solve(0.5)
    parts = [Problem.of(part, block).solve(0.5) for part, block in zip(weight.split([20, 13, 17], 1), blocks)]
    assert (made.codes == np.concatenate([part.codes for part, _ in parts], 1)).all()
    assert distortion == pytest.approx(sum(its for _, its in parts), rel=1e-5)


@pytest.mark.parametrize('block', [1, 7, 1000])
def test_the_columns_of_one_update_do_not_matter(monkeypatch, block):
    problem = Problem.of(randn(20, 200), metric_of(200, groups=2))
    expected, its = problem.solve(0.5)
    monkeypatch.setattr(problem_module, 'BLOCK', block)
    made, distortion = problem.solve(0.5)
    assert (made.codes == expected.codes).all() and distortion == pytest.approx(its, rel=1e-5)


def test_a_metric_with_dead_columns_and_one_that_is_all_zero():
    weight = randn(10, 20)
    metric = metric_of(20)
    metric[5], metric[:, 5] = 0.0, 0.0
    made, distortion = Problem.of(weight, metric).solve(0.5)
    assert math.isfinite(distortion) and np.abs(made.codes).max() < 50
    made, distortion = Problem.of(weight, torch.zeros(20, 20), torch.zeros(10)).solve(0.5)
    assert (made.codes == plain(weight, 0.5).numpy()).all() and distortion == 0


def test_a_singular_metric_of_few_samples():
    weight, metric = randn(10, 40), metric_of(40, samples=4)
    made, distortion = Problem.of(weight, metric).solve(0.3)
    assert distortion == pytest.approx(distortion_of(weight - made.decode(), damped(metric)), rel=1e-2)


@pytest.mark.parametrize(('row_power', 'column_power'), [(1.0, 1.0), (0.5, 0.0), (0.0, 0.5)])
def test_steps_of_rows_and_columns(monkeypatch, row_power, column_power):
    monkeypatch.setattr(problem_module, 'ROW_POWER', row_power)
    monkeypatch.setattr(problem_module, 'COLUMN_POWER', column_power)
    monkeypatch.setattr(problem_module, 'COLUMN_ROWS', 20)
    weight, metric, weights = randn(20, 30), metric_of(30), 10.0 ** randn(20, seed=5)
    made, distortion = Problem.of(weight, metric, weights).solve(0.3)
    assert made.row_exponents.any() == bool(row_power) and made.column_exponents.any() == bool(column_power)
    assert not Problem.of(weight[:19], metric, weights[:19]).solve(0.3)[0].column_exponents.any()
    if row_power:  # what counts more has finer steps
        order = weights.argsort()
        assert (np.diff(made.row_exponents[order.numpy()]) <= 0).all()
    assert distortion == pytest.approx(distortion_of(weight - made.decode(), damped(metric), weights), rel=1e-3)
    back = Lattice.from_payload((20, 30), LatticeSettings(1), made.to_payload())
    assert torch.equal(back.decode(), made.decode())


def test_sensitivity_is_the_distortion_of_a_unit_error():
    weights = torch.tensor([1.0, 4.0])
    problem = Problem.of(randn(2, 5), torch.diag(torch.full((5,), 3.0)), weights)
    assert problem.log_sensitivity == pytest.approx(math.log(3 * (1 + DAMPING)) + 0.5 * math.log(4), rel=1e-5)
    assert problem.spread == pytest.approx(float(randn(2, 5).std(unbiased=False)), rel=1e-5)


# ---- fits


@pytest.mark.parametrize('shape', [(64, 90), (16, 300)])
@pytest.mark.parametrize('rate', [0.8, 2.0, 6.0])
@pytest.mark.parametrize('with_metric', [False, True])
def test_a_fit_uses_its_budget_and_no_more(shape, rate, with_metric):
    weight = 0.02 * randn(*shape)
    chosen = FITTER.configure(shape, rate * weight.numel())
    made = FITTER.fit(weight, chosen, input_metric=metric_of(shape[1]) if with_metric else None)
    assert made.payload_bits() <= FITTER.planned_bits(shape, chosen) <= rate * weight.numel()
    assert made.payload_bits() >= 0.96 * rate * weight.numel()


def test_more_bits_make_a_smaller_error():
    weight, metric = randn(64, 64), metric_of(64)
    errors = []
    for rate in (1, 2, 3, 4):
        made = FITTER.fit(weight, FITTER.configure((64, 64), rate * 4096), input_metric=metric)
        errors.append(distortion_of(weight - made.decode(), metric))
    assert all(2.5 * after < before for before, after in zip(errors, errors[1:]))


def test_a_fit_takes_kernels_into_account():
    """Positions of a kernel that differ in size are coded each with its own scale."""
    weight = (randn(32, 16, 9) * torch.tensor([0.1, 1, 0.1, 1, 10, 1, 0.1, 1, 0.1])).flatten(1)
    fits = [FITTER.fit(weight, FITTER.configure((32, 144), weight.numel(), kernel_size)) for kernel_size in (9, 1)]
    assert [made.settings for made in fits] == [LatticeSettings(9), LatticeSettings()]
    errors = [float((weight - made.decode()).square().sum()) for made in fits]
    assert errors[0] < errors[1]


@pytest.mark.parametrize('value', [0.0, 0.3, -1e-20, 1e20])
def test_constant_matrices_have_a_fit(value):
    weight = torch.full((8, 8), value)
    made = FITTER.fit(weight, FITTER.configure((8, 8), 1000))
    assert made.payload_bits() <= 1000 and made.decode().isfinite().all()


def test_budgets_that_are_too_small():
    assert FITTER.configure((8, 8), 8 * HEADER) is None
    with pytest.raises(RiemError, match='a budget of 100 bits is too small'):
        FITTER.fit(randn(40, 40), LatticeBudget(100))


def test_progress_never_falls():
    seen = []
    FITTER.fit(randn(20, 20), FITTER.configure((20, 20), 1200), progress=seen.append)
    assert seen == sorted(seen) and seen[0] > 0 and seen[-1] <= 1


def test_the_same_bytes_again():
    chosen = FITTER.configure((40, 50), 6000)
    fits = [FITTER.fit(randn(40, 50), chosen, input_metric=metric_of(50)) for _ in range(2)]
    assert fits[0].to_payload() == fits[1].to_payload()


@pytest.mark.parametrize(
    ('change', 'words'),
    [
        ({'weight': torch.zeros(3)}, 'two non-empty dimensions'),
        ({'weight': torch.zeros(0, 5)}, 'two non-empty dimensions'),
        ({'weight': torch.full((4, 5), float('nan'))}, 'NaN or infinite'),
        ({'input_metric': torch.eye(4)}, 'square blocks over 5 columns'),
        ({'input_metric': [torch.eye(2), torch.eye(2)]}, 'square blocks over 5 columns'),
        ({'input_metric': torch.eye(5).expand(3, 5, 5)}, 'square blocks over 5 columns'),
        ({'input_metric': [torch.eye(2).expand(2, 2, 2), torch.eye(3)]}, 'square blocks over 5 columns'),
        ({'input_metric': torch.zeros(1, 5, 4)}, 'square blocks over 5 columns'),
        ({'input_metric': -torch.eye(5)}, 'non-negative diagonal'),
        ({'input_metric': torch.full((5, 5), float('inf'))}, 'finite values'),
        ({'output_weights': torch.ones(5)}, r'expected \(4,\)'),
        ({'output_weights': -torch.ones(4)}, 'finite non-negative'),
        ({'output_weights': torch.full((4,), float('nan'))}, 'finite non-negative'),
    ],
)
def test_arguments_that_do_not_fit_are_refused(change, words):
    arguments = {'weight': randn(4, 5), 'input_metric': None, 'output_weights': None, **change}
    with pytest.raises(RiemError, match=words):
        FITTER.fit(arguments.pop('weight'), LatticeBudget(2000), **arguments)


@pytest.mark.parametrize('trellis', [False, True])
def test_powers_of_two_change_no_integer(trellis):
    """Of weights that collapsed, of metrics, of output weights that float32 cannot hold: closed forms for each."""
    weight, metric, rows = randn(6, 20), metric_of(20), randn(6, seed=2).double().square() + 0.1
    lattice, distortion = Problem.of(weight, metric, rows, 1, trellis).solve(0.25)
    for of_weight, of_metric, of_rows in ((-70, 0, 0), (60, 0, 0), (0, -40, 0), (0, 40, 0), (0, 0, -200), (0, 0, 200)):
        scaled = (weight * 2.0**of_weight, metric * 2.0**of_metric, rows * 2.0**of_rows)
        problem = Problem.of(*scaled, 1, trellis)
        found, its_distortion = problem.solve(0.25 * 2.0**of_weight)
        assert (found.codes == lattice.codes).all()
        expected = distortion * 2.0 ** (2 * of_weight + of_metric + of_rows)
        assert its_distortion == pytest.approx(expected, rel=1e-6)
        usual = Problem.of(weight, metric, rows, 1, trellis).log_sensitivity
        assert problem.log_sensitivity == pytest.approx(usual + (of_metric + of_rows) * math.log(2), rel=1e-6)


@pytest.mark.parametrize('trellis', [False, True])
@pytest.mark.parametrize('scale', [1e-40, 1e-45])
def test_denormal_weights_become_zeros(scale, trellis):
    problem = Problem.of(randn(6, 20) * scale, None, None, 1, trellis)
    lattice, distortion = problem.solve(problem.spread / 16)
    assert (lattice.decode() == 0).all()
    assert distortion == 0 or math.isfinite(distortion)


@pytest.mark.parametrize(
    ('metric', 'words'),
    [
        (torch.eye(4).double() * 1e80, 'pivots whose squares float32 can hold'),
        (torch.eye(4).double() * 1e-80, 'pivots whose squares float32 can hold'),
        (torch.ones(4, 4).double() - 0.2 * torch.eye(4), 'no negative eigenvalue'),
    ],
)
def test_metrics_that_float32_cannot_factor_are_refused(metric, words):
    with pytest.raises(RiemError, match=words):
        Problem.of(randn(6, 4), metric)


def test_it_is_known_by_its_name():
    assert get_representation('lattice') is LATTICE and LATTICE.codec is Lattice
