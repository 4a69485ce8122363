"""The bilinear representation: the best low-rank form, quantised; strict with payloads and settings."""

import hashlib
import struct

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmriem.core.errors import RiemError
from mmriem.core.representations.bilinear.codec import Bilinear
from mmriem.core.representations.bilinear.fitter import BilinearFitter
from mmriem.core.representations.bilinear.live import BilinearStates
from mmriem.core.representations.bilinear.representation import BILINEAR
from mmriem.core.representations.bilinear.settings import BilinearBudget, BilinearSettings
from mmriem.core.representations.registry import get_representation

LIVE = BilinearStates()


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def truncated_svd(weight, rank):
    left, singular, right = torch.linalg.svd(weight.double(), full_matrices=False)
    return left[:, :rank] * singular[:rank] @ right[:rank]


def snr(weight, decoded):
    """Decibels."""
    weight, decoded = weight.double(), decoded.double()
    return float(10 * torch.log10(weight.square().sum() / (weight - decoded).square().sum()))


def weighted(weight, decoded, metric=None, rows=None):
    """``sum_i g_i (w_i - w'_i)^T A (w_i - w'_i)``, entry by entry."""
    error = (weight - decoded).double()
    metric = torch.eye(weight.shape[1]).double() if metric is None else metric.double()
    rows = torch.ones(len(weight)).double() if rows is None else rows.double()
    return float(torch.einsum('i,ij,jk,ik->', rows, error, metric, error))


def payload_of(shape, rank, bits, rng):
    """A payload by the file format: grids of q and p as float16, then the integers of q and of p."""
    floats = rng.uniform(-2, 2, 4 * rank).astype('<f2')
    codes = [rng.integers(0, 2**bits, neurons * rank, dtype=np.uint8) for neurons in shape]
    streams = [np.packbits(np.unpackbits(values[:, None], axis=1)[:, 8 - bits :]).tobytes() for values in codes]
    return floats.tobytes() + b''.join(streams), floats, codes


# ---- decoding


def test_it_is_registered():
    assert get_representation('bilinear') is BILINEAR and BILINEAR.codec is Bilinear


@settings(max_examples=60, deadline=None)
@given(st.tuples(st.integers(1, 20), st.integers(1, 20)), st.integers(1, 9), st.integers(2, 8), st.integers(0, 99))
def test_payloads_come_back(shape, rank, bits, seed):
    payload, floats, codes = payload_of(shape, rank, bits, np.random.default_rng(seed))
    form = BilinearSettings(rank, bits)
    encoded = Bilinear.from_payload(shape, form, payload)
    assert encoded.shape == shape and encoded.settings == form and encoded.symbols == rank * sum(shape)
    assert encoded.to_payload() == payload
    assert encoded.payload_bits() == 8 * len(payload) == BilinearFitter().planned_bits(shape, form)
    # W_ij = sum_r q_ir p_jr with q = low + step * integer
    low_q, step_q, low_p, step_p = floats.astype(np.float64).reshape(4, rank)
    q = low_q + step_q * codes[0].reshape(-1, rank)
    p = low_p + step_p * codes[1].reshape(-1, rank)
    decoded = encoded.decode()
    assert decoded.dtype == torch.float32
    bound = 2e-6 * rank * np.abs(q).max() * np.abs(p).max()
    assert np.abs(decoded.numpy() - q @ p.T).max() <= bound
    again = Bilinear.from_payload(shape, form, encoded.to_payload())
    assert torch.equal(again.decode(), decoded)


@pytest.mark.parametrize('exponent', [-75, -7, 7, 60])
def test_states_are_in_units_of_a_power_of_two(exponent):
    payload, *_ = payload_of((5, 6), 3, 4, np.random.default_rng(0))
    plain = Bilinear.from_payload((5, 6), BilinearSettings(3, 4), payload)
    form = BilinearSettings(3, 4, exponent)
    scaled = Bilinear.from_payload((5, 6), form, payload)
    assert scaled.settings == form and scaled.to_payload() == payload
    for name, value in plain.states().items():
        assert torch.equal(scaled.states()[name].double(), value.double() * 2.0**exponent)
    assert torch.equal(scaled.decode(), (plain.decode().double() * 4.0**exponent).float())


def test_bits_of_the_decoded_matrix_are_those_of_every_machine():
    """Golden: SHA-256 of the decoded matrix, little-endian float32, of a payload made by rule."""
    shape, rank, bits = (37, 53), 11, 5
    floats = [((37 * k) % 101 - 50) / 64 for k in range(4 * rank)]
    sizes = [(neurons * rank * bits + 7) // 8 for neurons in shape]
    streams = [bytes((89 * k + 7 * k * k + 13) % 256 for k in range(size)) for size in sizes]
    streams = [s[:-1] + bytes([0]) for s in streams]  # the last byte has padding bits
    payload = struct.pack(f'<{4 * rank}e', *floats) + b''.join(streams)
    decoded = Bilinear.from_payload(shape, BilinearSettings(rank, bits), payload).decode()
    digest = hashlib.sha256(decoded.numpy().astype('<f4').tobytes()).hexdigest()
    assert digest == 'b93b95670cec6e8f9577bf7d5e39c8491880561e0d5a2a3f3a3c689634f61a63'


def test_regenerating_from_states_is_differentiable():
    encoded = BilinearFitter().fit(randn(12, 9), BilinearSettings(4, 6))
    states = {name: value.requires_grad_() for name, value in encoded.states().items()}
    assert tuple(states) == LIVE.state_names
    weight = LIVE.regenerate(states)
    assert torch.allclose(weight, encoded.decode(), atol=1e-5)
    upstream = randn(12, 9, seed=1)
    weight.backward(upstream)
    assert torch.allclose(states['q'].grad, upstream @ states['p'].detach())
    assert torch.allclose(states['p'].grad, upstream.T @ states['q'].detach())


def test_random_and_scaled_states_have_the_sizes_asked_for():
    states = LIVE.random_states((10, 7), BilinearSettings(3, 8))
    assert {name: tuple(value.shape) for name, value in states.items()} == {'q': (10, 3), 'p': (7, 3)}
    scaled = LIVE.regenerate(LIVE.scaled_states(states, 0.25, 0.0))
    assert torch.allclose(scaled, 0.25 * LIVE.regenerate(states), atol=1e-6)


# ---- payloads and settings that lie


FORM = {'rank': 3, 'state_bits': 5}
PAYLOAD = payload_of((6, 7), 3, 5, np.random.default_rng(1))[0]


def parse(payload, form=FORM, shape=(6, 7)):
    return Bilinear.from_record(shape, form, payload)


@pytest.mark.parametrize('length', [0, 1, len(PAYLOAD) // 2, len(PAYLOAD) - 1])
def test_a_truncated_payload_is_refused(length):
    with pytest.raises(RiemError, match=f'expected {len(PAYLOAD)} bytes, found {length}'):
        parse(PAYLOAD[:length])


def test_an_extended_payload_or_another_shape_is_refused():
    for action in (lambda: parse(PAYLOAD + b'\0'), lambda: parse(PAYLOAD, shape=(7, 7))):
        with pytest.raises(RiemError, match='bytes'):
            action()


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 8 * len(PAYLOAD) - 1))
def test_a_flipped_bit_gives_another_object_or_one_error(position):
    damaged = bytearray(PAYLOAD)
    damaged[position // 8] ^= 1 << position % 8
    try:
        encoded = parse(bytes(damaged))
    except RiemError:
        return
    assert encoded.to_payload() == damaged and encoded.decode().isfinite().all()


def test_grids_that_are_not_finite_are_refused():
    with pytest.raises(RiemError, match='finite'):
        parse(struct.pack('<e', float('nan')) + PAYLOAD[2:])


ANYTHING = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.lists(st.integers())


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(st.sampled_from(['rank', 'state_bits', 'exponent', 'budget', 'x']), ANYTHING) | ANYTHING)
def test_other_settings_are_refused(form):
    with pytest.raises(RiemError):
        parse(PAYLOAD, form)


@pytest.mark.parametrize(
    'form',
    [
        {'rank': 3, 'state_bits': True},
        {'rank': 3.0, 'state_bits': 5},
        {'rank': -3, 'state_bits': 5},
        {'rank': 0, 'state_bits': 5},
        {'rank': 10**4000, 'state_bits': 5},
        {'rank': 3, 'state_bits': 9},
        {'rank': 3, 'state_bits': 1},
        {'rank': 3},
        {'rank': 3, 'state_bits': 5, 'exponent': 1.0},
        {'rank': 3, 'state_bits': 5, 'exponent': 1000},
        {'rank': 3, 'state_bits': 5, 7: 7},
        {'rank': 1 << 16, 'state_bits': 8},
    ],
)
def test_settings_of_other_types_and_sizes_are_refused(form):
    with pytest.raises(RiemError) as raised:
        parse(PAYLOAD, form)
    assert '\n' not in str(raised.value) and len(str(raised.value)) < 500


# ---- choosing a configuration


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 300), st.integers(1, 300), st.floats(0, 20), st.integers(2, 8))
def test_the_highest_rank_within_the_budget_is_chosen(out, inputs, rate, bits):
    shape, budget = (out, inputs), rate * out * inputs
    form = BilinearFitter(state_bits=bits).configure(shape, budget)
    rank = form.rank if form else 0
    if form:
        assert BilinearFitter().planned_bits(shape, form) <= budget and rank <= min(shape)
    if rank < min(shape):
        assert BilinearFitter().planned_bits(shape, BilinearSettings(rank + 1, bits)) > budget


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 24), st.integers(1, 24), st.floats(0.3, 20), st.sampled_from([0, 3, 8]))
def test_a_fit_has_at_most_the_planned_bits(out, inputs, rate, bits):
    form = BilinearFitter(state_bits=bits).configure((out, inputs), rate * out * inputs)
    if form is None:
        return
    encoded = BilinearFitter().fit(randn(out, inputs), form)
    planned = BilinearFitter().planned_bits((out, inputs), form)
    assert encoded.payload_bits() == 8 * len(encoded.to_payload()) <= planned <= rate * out * inputs
    if bits:
        assert encoded.payload_bits() == planned and encoded.settings == form
    again = Bilinear.from_payload(encoded.shape, encoded.settings, encoded.to_payload())
    assert torch.equal(again.decode(), encoded.decode())


def test_options_fix_single_settings():
    assert BilinearFitter(rank=7, state_bits=6).configure((40, 50), 1e6) == BilinearSettings(7, 6)
    assert BilinearFitter(rank=7, state_bits=6).configure((40, 50), 100) is None
    assert BilinearFitter().configure((40, 50), 10) is None
    with pytest.raises(RiemError, match='state_bits'):
        BilinearFitter(state_bits=9).configure((40, 50), 1e6)


# ---- fitting


def test_at_8_bits_it_is_the_truncated_svd_up_to_rounding():
    weight = randn(40, 60)
    best = truncated_svd(weight, 10)
    fitted = BilinearFitter().fit(weight, BilinearSettings(10, 8)).decode()
    least, error = ((weight - x).double().square().sum() for x in (best, fitted))
    assert least <= error <= 1.001 * least
    assert snr(best, fitted) > 35


def test_more_bits_and_higher_ranks_fit_better():
    weight = randn(30, 40)
    by_bits = [snr(weight, BilinearFitter().fit(weight, BilinearSettings(30, bits)).decode()) for bits in (3, 5, 8)]
    by_rank = [snr(weight, BilinearFitter().fit(weight, BilinearSettings(rank, 8)).decode()) for rank in (5, 15, 30)]
    assert by_bits == sorted(by_bits) and by_rank == sorted(by_rank)
    assert by_bits[-1] > 40 and by_bits[-1] - by_bits[0] > 20


@pytest.mark.parametrize(('rank', 'bits'), [(4, 8), (12, 6), (30, 4)])
def test_open_state_bits_are_those_of_the_best_fit(rank, bits):
    """Many bits for a matrix of low rank, many ranks for one of full rank."""
    weight = randn(30, rank) @ randn(rank, 40, seed=1)
    budget = 5.0 * weight.numel()
    chosen = BilinearFitter().fit(weight, BilinearFitter().configure((30, 40), budget))
    each = [BilinearFitter().fit(weight, BilinearFitter(state_bits=b).configure((30, 40), budget)) for b in range(4, 9)]
    best = max(each, key=lambda fit: snr(weight, fit.decode()))
    assert chosen.to_payload() == best.to_payload()
    assert best.settings.state_bits == bits


def test_rounding_in_turn_beats_rounding_the_svd():
    weight = randn(40, 60)
    left, singular, right = torch.linalg.svd(weight, full_matrices=False)
    rank, levels = 20, 15

    def rounded(states):
        low, high = states.amin(0), states.amax(0)
        return low + ((states - low) / (high - low) * levels).round() / levels * (high - low)

    balance = singular[:rank].sqrt()
    plain = rounded(left[:, :rank] * balance) @ rounded(right[:rank].T * balance).T
    fitted = BilinearFitter().fit(weight, BilinearSettings(rank, 4)).decode()
    best = truncated_svd(weight, rank).float()
    assert snr(best, fitted) > snr(best, plain) + 1 and snr(weight, fitted) > snr(weight, plain)


def metric_and_rows():
    samples = randn(300, 50, seed=2) * torch.logspace(0, -1.5, 50) @ torch.linalg.qr(randn(50, 50, seed=3))[0]
    return samples.T @ samples / 300, torch.logspace(0, -2, 30)


@pytest.mark.parametrize('use', ['metric', 'rows', 'both'])
def test_a_weighted_fit_is_better_where_the_weights_are(use):
    weight = randn(30, 50, seed=4)
    metric, rows = metric_and_rows()
    given = {'metric': metric if use != 'rows' else None, 'rows': rows if use != 'metric' else None}
    form = BilinearSettings(8, 8)
    fitted = BilinearFitter().fit(weight, form, input_metric=given['metric'], output_weights=given['rows']).decode()
    plain = BilinearFitter().fit(weight, form).decode()
    assert weighted(weight, fitted, **given) < 0.6 * weighted(weight, plain, **given)
    assert weighted(weight, fitted) > weighted(weight, plain)


def test_the_weighted_fit_is_the_best_there_is():
    """Against the closed form in float64: SVD of ``diag(g)^(1/2) W A^(1/2)``."""
    weight = randn(30, 50, seed=4)
    metric, rows = metric_and_rows()
    fitted = BilinearFitter().fit(weight, BilinearSettings(8, 8), input_metric=metric, output_weights=rows).decode()
    values, vectors = torch.linalg.eigh(metric.double())
    half = vectors * values.clamp_min(0).sqrt() @ vectors.T
    singular = torch.linalg.svdvals(rows.double().sqrt()[:, None] * weight.double() @ half)
    least = float(singular[8:].square().sum())
    assert 0.999 * least <= weighted(weight, fitted, metric, rows) <= 1.01 * least


@pytest.mark.parametrize('factor', [1e-12, 1e12])
def test_the_scale_of_the_weights_of_the_error_is_irrelevant(factor):
    weight = randn(30, 50, seed=4)
    metric, rows = metric_and_rows()
    form = BilinearSettings(8, 8)
    once = BilinearFitter().fit(weight, form, input_metric=metric, output_weights=rows).decode()
    scaled = BilinearFitter().fit(weight, form, input_metric=metric * factor, output_weights=rows * factor).decode()
    ratio = weighted(weight, scaled, metric, rows) / weighted(weight, once, metric, rows)
    assert ratio == pytest.approx(1, rel=1e-3)


def test_inputs_and_outputs_that_never_occur_do_not_disturb_the_others():
    weight = randn(30, 50, seed=4)
    metric, rows = metric_and_rows()
    metric[10:30], metric[:, 10:30], rows[5:15] = 0, 0, 0
    form = BilinearSettings(8, 8)
    used_columns, used_rows = [*range(10), *range(30, 50)], [*range(5), *range(15, 30)]
    fitted = BilinearFitter().fit(weight, form, input_metric=metric, output_weights=rows).decode()
    alone = (
        BilinearFitter()
        .fit(
            weight[used_rows][:, used_columns],
            form,
            input_metric=metric[used_columns][:, used_columns],
            output_weights=rows[used_rows],
        )
        .decode()
    )
    assert fitted.isfinite().all()
    found = weighted(weight, fitted, metric, rows)
    expected = weighted(
        weight[used_rows][:, used_columns], alone, metric[used_columns][:, used_columns], rows[used_rows]
    )
    assert found <= 1.02 * expected
    for nothing in ({'input_metric': metric * 0}, {'output_weights': rows * 0}):
        assert BilinearFitter().fit(weight, form, **nothing).decode().isfinite().all()


@pytest.mark.parametrize('scale', [1e-30, 1e-12, 1e-6, 1e6, 1e12, 1e30])
def test_weights_of_any_scale_fit_as_well(scale):
    weight, form = randn(30, 40), BilinearSettings(20, 8)
    reference = snr(weight, BilinearFitter().fit(weight, form).decode())
    encoded = BilinearFitter().fit(weight * scale, form)
    again = Bilinear.from_payload(encoded.shape, encoded.settings, encoded.to_payload())
    assert torch.equal(again.decode(), encoded.decode())
    assert abs(snr(weight * scale, encoded.decode()) - reference) < 0.1


@pytest.mark.parametrize('form', [BilinearSettings(5, 8), BilinearBudget(8000)])
@pytest.mark.parametrize(
    ('weight', 'least'),
    [
        (torch.zeros(20, 30), None),
        (torch.full((20, 30), 0.1), 60),
        (torch.full((20, 30), -1e3), 60),
        (randn(20, 30) + 1000, 55),
        (randn(20, 1) @ randn(1, 30), 35),
        (randn(20, 2) @ randn(2, 30), 35),
        (torch.cat([randn(1, 30), torch.zeros(19, 30)]), 35),
        (torch.cat([randn(20, 1), torch.zeros(20, 29)], 1), 35),
        (torch.zeros(20, 30).index_put((torch.tensor(3), torch.tensor(5)), torch.tensor(1e4)), 60),
        (torch.eye(20, 30).index_put((torch.tensor(3), torch.tensor(5)), torch.tensor(1e4)), 60),
    ],
    ids=['zero', 'constant', '-1000', 'around1000', 'rank1', 'rank2', 'one-row', 'one-column', 'one-entry', 'outlier'],
)
def test_degenerate_matrices(weight, least, form):
    decoded = BilinearFitter().fit(weight, form).decode()
    if least is None:
        assert torch.equal(decoded, weight)
    else:
        assert snr(weight, decoded) > least


@pytest.mark.parametrize('shape', [(1, 1), (1, 50), (50, 1), (2, 3), (17, 17)])
def test_tiny_matrices(shape):
    weight = randn(*shape)
    encoded = BilinearFitter().fit(weight, BilinearSettings(min(shape), 8))
    assert snr(weight, encoded.decode()) > 30


@pytest.mark.parametrize('value', [float('nan'), float('inf'), -float('inf')])
def test_weights_that_are_not_finite_are_refused(value):
    weight = randn(5, 6)
    weight[2, 3] = value
    with pytest.raises(RiemError, match='NaN or infinite'):
        BilinearFitter().fit(weight, BilinearSettings(2, 8))


@pytest.mark.parametrize(
    ('arguments', 'words'),
    [
        ({'input_metric': torch.eye(5)}, r'input metric has shape \(5, 5\), expected \(6, 6\)'),
        ({'output_weights': torch.ones(6)}, r'output weights have shape \(6,\), expected \(5,\)'),
        ({'input_metric': torch.eye(6) * float('nan')}, 'input metric.* finite'),
        ({'input_metric': -torch.eye(6)}, 'non-negative diagonal'),
        ({'input_metric': torch.ones(6, 6) * 2 - torch.eye(6)}, 'positive semi-definite'),
        ({'output_weights': torch.tensor([1.0, 1, 1, 1, -1])}, 'output weights.* non-negative'),
        ({'output_weights': torch.tensor([1.0, 1, 1, 1, float('inf')])}, 'output weights.* finite'),
    ],
)
def test_weights_of_the_error_that_make_no_sense_are_refused(arguments, words):
    with pytest.raises(RiemError, match=words):
        BilinearFitter().fit(randn(5, 6), BilinearSettings(2, 8), **arguments)


def test_configurations_that_make_no_sense_are_refused():
    for made in (lambda: BilinearSettings(2, 9), lambda: BilinearSettings(2.0, 8), lambda: BilinearBudget(0)):
        with pytest.raises(RiemError):
            made()
    with pytest.raises(RiemError, match='a budget of 3 bits is too small'):
        BilinearFitter().fit(randn(5, 6), BilinearBudget(3))


@pytest.mark.parametrize('form', [BilinearSettings(3, 8), BilinearBudget(3000)])
def test_progress_goes_up_to_one(form):
    seen = []
    BilinearFitter().fit(randn(12, 15) @ torch.diag(torch.logspace(0, -3, 15)), form, progress=seen.append)
    assert seen == sorted(seen) and seen[0] >= 0 and seen[-1] == 1.0


@pytest.mark.parametrize('dtype', [torch.float64, torch.float16, torch.bfloat16])
def test_other_dtypes_are_fitted_too(dtype):
    weight = randn(12, 15).to(dtype)
    decoded = BilinearFitter().fit(weight, BilinearSettings(12, 8)).decode()
    assert decoded.dtype == torch.float32 and snr(weight.float(), decoded) > 35


@pytest.mark.parametrize('noise', [1e-6, 1e-5])
def test_a_metric_that_rounding_has_left_a_little_below_semi_definite(noise):
    """States are large where it is small."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(10, 60, generator=generator) + 3
    metric, weight = inputs.T @ inputs / 10, torch.randn(40, 60, generator=generator)
    errors = noise * metric.diagonal().mean() * torch.randn(60, 60, generator=generator)
    metric = metric + errors + errors.T
    assert float(torch.linalg.eigvalsh(metric.double())[0]) < -2 * noise * float(metric.diagonal().mean())
    chosen = BilinearFitter().configure((40, 60), 6 * weight.numel())
    distortions = []
    for input_metric in (metric, None):
        error = weight - BilinearFitter().fit(weight, chosen, input_metric=input_metric).decode()
        distortions.append(float(((error @ metric) * error).sum()))
    assert distortions[0] < 0.5 * distortions[1]
