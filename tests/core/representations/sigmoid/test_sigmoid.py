"""The sigmoid representation: the formula of the paper to the letter, the fit, and payloads that lie."""

import dataclasses
import hashlib
import math
import struct

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmriem.core.errors import RiemError
from mmriem.core.representations.registry import get_representation
from mmriem.core.representations.sigmoid import fit as fit_module
from mmriem.core.representations.sigmoid.codec import Sigmoid
from mmriem.core.representations.sigmoid.fit import Fit
from mmriem.core.representations.sigmoid.fitter import TILE, SigmoidFitter
from mmriem.core.representations.sigmoid.live import SigmoidStates
from mmriem.core.representations.sigmoid.representation import SIGMOID
from mmriem.core.representations.sigmoid.settings import SigmoidSettings

LIVE = SigmoidStates()


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def snr(weight, decoded):
    """Decibels, of what differs from the mean."""
    weight, decoded = weight.double(), decoded.double()
    return float(10 * torch.log10((weight - weight.mean()).square().sum() / (weight - decoded).square().sum()))


def form_of(dq, dmu, shifts=6, row_blocks=1, col_blocks=1, state_bits=8):
    return SigmoidSettings(dq, dmu, shifts, row_blocks, col_blocks, state_bits)


def fit(weight, form, *, seed=0, seeds=1, effort=1.0, **arguments):
    return SigmoidFitter(seed=seed, seeds=seeds, effort=effort).fit(weight, form, **arguments)


def payload_of(shape, form, seed=0, spread=2.0):
    """A payload by the file format, of random numbers."""
    rng = np.random.default_rng(seed)
    dq, dmu, shifts, bits = form.dq, form.dmu, form.shifts, form.state_bits
    pieces = []
    for columns, levels in ((dq, 2**bits), (dq, 2**bits), (1, 256)):
        pieces.append(rng.uniform(-spread, 0, columns).astype('<f2').tobytes())
        pieces.append((rng.uniform(spread, 2 * spread, columns) / levels).astype('<f2').tobytes())
    pieces.append(rng.normal(size=(shifts, dmu)).astype('<f2').tobytes())
    pieces.append(rng.normal(size=dmu).astype('<f4').tobytes())
    pieces.append(rng.normal(size=()).astype('<f4').tobytes())
    counts = (form.col_blocks * shape[0] * dq, form.row_blocks * shape[1] * dq, shifts * dmu * dq)
    for count, width in zip(counts, (bits, bits, 8)):
        codes = rng.integers(0, 2**width, (count, 1), dtype=np.uint8)
        pieces.append(np.packbits(np.unpackbits(codes, axis=1)[:, 8 - width :]).tobytes())
    return b''.join(pieces)


def sigmoid(x):
    return 1 / (1 + math.exp(-x)) if x > -700 else 0.0


def block_of(index, size, count):
    """Number of the block that holds ``index``: block ``n`` begins at ``size * n // count``."""
    return max(n for n in range(count) if size * n // count <= index)


def formula(states):
    """The formula of the module, pair by pair in float64; with several tiles each has states of its own."""
    q, p, metric, b, w, c = (states[name].double().numpy() for name in ('q', 'p', 'M', 'b', 'w', 'c'))
    shifts, dmu, dq = metric.shape
    weight = np.zeros((q.shape[1], p.shape[1]))
    for i in range(q.shape[1]):
        for j in range(p.shape[1]):
            qi = q[block_of(j, p.shape[1], q.shape[0]), i]
            pj = p[block_of(i, q.shape[1], p.shape[0]), j]
            weight[i, j] = c
            for k in range(shifts):
                s = k * dq // shifts
                shifted = np.concatenate([pj[s:], pj[:s]])
                arguments = metric[k] @ (qi + shifted) + b[k]
                for m in range(dmu):
                    weight[i, j] += w[m] * sigmoid(arguments[m])
    return torch.from_numpy(weight)


def differentiable_formula(states):
    """The same in float64 torch operations, one tile only."""
    q, p, metric, b, w, c = (states[name] for name in ('q', 'p', 'M', 'b', 'w', 'c'))
    shifts, _, dq = metric.shape
    weight = c
    for k in range(shifts):
        s = k * dq // shifts
        pair = q[0][:, None] + torch.cat([p[0][:, s:], p[0][:, :s]], 1)
        weight = weight + torch.sigmoid(pair @ metric[k].T + b[k]) @ w
    return weight


# ---- the formula

CASES = [
    ((5, 7), form_of(4, 3)),
    ((5, 7), form_of(13, 2)),
    ((3, 4), form_of(1, 1, shifts=1)),
    ((4, 3), form_of(5, 2, shifts=4)),
    ((4, 3), form_of(3, 2, shifts=7)),
    ((7, 11), form_of(6, 2, row_blocks=2, col_blocks=3)),
    ((5, 5), form_of(7, 2, shifts=3, row_blocks=5, col_blocks=2, state_bits=3)),
    ((1, 9), form_of(2, 4, col_blocks=4, state_bits=5)),
]


def test_it_is_registered():
    assert get_representation('sigmoid') is SIGMOID and SIGMOID.codec is Sigmoid


@pytest.mark.parametrize(('shape', 'form'), CASES)
def test_decoding_is_the_formula(shape, form):
    encoded = Sigmoid.from_payload(shape, form, payload_of(shape, form))
    decoded = encoded.decode()
    assert decoded.dtype == torch.float32 and decoded.shape == shape
    assert torch.allclose(decoded.double(), formula(encoded.states()), rtol=0, atol=2e-5)


def test_dequantised_states_are_levels_of_the_grids():
    """A payload written by hand: ``out`` 1, ``in`` 2, one dimension, one sigmoid, two shifts."""
    form = form_of(1, 1, shifts=2)
    payload = struct.pack('<6e', -1.0, 0.5, 2.0, 0.25, -3.0, 0.125)  # low and step of q, p, M
    payload += struct.pack('<2e', 0.75, -0.75) + struct.pack('<2f', 3.0, 0.1)  # b, w, c
    payload += bytes([3, 0, 4, 8, 255])  # q; p of the two inputs; M of the two shifts
    encoded = Sigmoid.from_payload((1, 2), form, payload)
    assert {name: value.flatten().tolist() for name, value in encoded.states().items()} == {
        'q': [0.5],
        'p': [2.0, 3.0],
        'M': [-2.0, 28.875],
        'b': [0.75, -0.75],
        'w': [3.0],
        'c': [np.float32(0.1)],
    }
    assert encoded.symbols == 5 and encoded.settings == form and encoded.to_payload() == payload
    expected = [0.1 + 3 * (sigmoid(-2 * (0.5 + p) + 0.75) + sigmoid(28.875 * (0.5 + p) - 0.75)) for p in (2, 3)]
    assert encoded.decode().tolist() == [pytest.approx(expected, abs=1e-6)]


@pytest.mark.parametrize(('q', 'p'), [(50, -48), (-70, 71), (75, -75.5), (70, 70), (-70, -70), (90, 90), (-100, -90)])
def test_large_arguments_that_cancel_or_saturate(q, p):
    payload = struct.pack('<6e', q, 1, p, 1, 1, 1) + struct.pack('<e', 0) + struct.pack('<2f', 1, 0) + bytes(3)
    encoded = Sigmoid.from_payload((1, 1), form_of(1, 1, shifts=1), payload)
    assert float(encoded.decode()) == pytest.approx(sigmoid(q + p), abs=1e-6)


def test_bits_of_the_decoded_matrix_are_those_of_every_machine():
    """Golden: SHA-256 of the decoded matrix, little-endian float32, of a payload made by rule."""
    shape, form = (37, 53), form_of(11, 4, row_blocks=2, col_blocks=3, state_bits=8)
    grids = [((37 * k) % 101 - 50) / 50 for k in range(46)]
    grids[11:22] = grids[33:44] = [step / 256 for step in grids[:11]]
    grids[44:46] = [-0.5, 0.004]
    b, w = ([((23 * k) % 61 - 30) / 20 for k in range(count)] for count in (24, 4))
    states = bytes((89 * k + 7 * k * k + 13) % 256 for k in range((3 * 37 + 2 * 53) * 11 + 6 * 4 * 11))
    payload = struct.pack('<46e24e5f', *grids, *b, *w, 0.3) + states
    decoded = Sigmoid.from_payload(shape, form, payload).decode()
    digest = hashlib.sha256(decoded.numpy().astype('<f4').tobytes()).hexdigest()
    assert digest == '0e6c56f9a37a21ce3691d714df1d3b06b1921bac97bd65917465daeea89d9cd9'


@pytest.mark.parametrize(('shape', 'form'), CASES)
def test_regenerating_gives_the_bits_of_decoding(shape, form):
    encoded = Sigmoid.from_payload(shape, form, payload_of(shape, form))
    assert torch.equal(LIVE.regenerate(encoded.states()), encoded.decode())


def test_every_number_of_threads_gives_the_same_bits():
    shape, form = (150, 300), form_of(20, 6, row_blocks=3, col_blocks=3)
    encoded = Sigmoid.from_payload(shape, form, payload_of(shape, form))
    before = torch.get_num_threads()
    try:
        decoded = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            decoded.append(encoded.decode())
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*decoded)


@pytest.mark.parametrize('form', [form_of(5, 3), form_of(7, 2, shifts=3)])
def test_gradients_are_those_of_the_formula(form):
    shape = (6, 8)
    states = Sigmoid.from_payload(shape, form, payload_of(shape, form, spread=1.0)).states()
    upstream = randn(*shape, seed=1)
    ours = {name: value.clone().requires_grad_() for name, value in states.items()}
    LIVE.regenerate(ours).backward(upstream)
    wide = {name: value.double().requires_grad_() for name, value in states.items()}
    differentiable_formula(wide).backward(upstream.double())
    for name in LIVE.state_names:
        expected = wide[name].grad
        assert ours[name].grad.shape == expected.shape
        assert (ours[name].grad - expected).abs().max() <= 1e-4 * expected.abs().max() + 1e-6, name


def test_gradients_with_several_tiles_against_differences():
    shape, form = (5, 7), form_of(4, 2, row_blocks=2, col_blocks=3)
    states = Sigmoid.from_payload(shape, form, payload_of(shape, form, spread=1.0)).states()
    upstream = randn(*shape, seed=1)
    leaves = {name: value.clone().requires_grad_() for name, value in states.items()}
    LIVE.regenerate(leaves).backward(upstream)
    for name, value in states.items():
        direction = randn(*value.shape, seed=2).double()
        ends = [formula({**states, name: value.double() + step * direction}) for step in (1e-5, -1e-5)]
        slope = float(((ends[0] - ends[1]) * upstream).sum()) / 2e-5
        assert float((leaves[name].grad * direction).sum()) == pytest.approx(slope, rel=1e-3, abs=1e-4), name


def test_random_states_have_the_sizes_asked_for_and_scale():
    form = form_of(6, 4, shifts=3, row_blocks=2, col_blocks=3)
    states = LIVE.random_states((10, 20), form)
    sizes = {name: tuple(value.shape) for name, value in states.items()}
    assert sizes == {'q': (3, 10, 6), 'p': (2, 20, 6), 'M': (3, 4, 6), 'b': (3, 4), 'w': (4,), 'c': ()}
    weight = LIVE.regenerate(states)
    scaled = LIVE.regenerate(LIVE.scaled_states(states, 0.3, -2.0))
    assert torch.allclose(scaled, 0.3 * weight - 2, atol=1e-5)


# ---- sizes


def test_the_parameters_of_the_paper():
    form = form_of(52, 14)
    assert form.parameter_count((128, 256)) == 24435
    q, p, metric, b, w, c = (x.numel() for x in LIVE.random_states((128, 256), form).values())
    assert q + p + metric + b + w + c == 24435


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_payloads_come_back(data):
    shape = data.draw(st.tuples(st.integers(1, 20), st.integers(1, 30)))
    form = form_of(
        *(data.draw(st.integers(1, high)) for high in (8, 4, 8, min(shape[0], 4), min(shape[1], 4))),
        state_bits=data.draw(st.integers(2, 8)),
    )
    payload = payload_of(shape, form, seed=data.draw(st.integers(0, 99)))
    encoded = Sigmoid.from_payload(shape, form, payload)
    assert encoded.shape == shape and encoded.settings == form and encoded.to_payload() == payload
    states = encoded.states()
    assert encoded.symbols == sum(states[name].numel() for name in 'qpM')
    assert sum(value.numel() for value in states.values()) == form.parameter_count(shape)
    size = 8 * len(payload)
    assert encoded.payload_bits() == form.payload_bits(shape) == SigmoidFitter().planned_bits(shape, form) == size
    again = Sigmoid.from_payload(shape, encoded.settings, encoded.to_payload())
    assert torch.equal(again.decode(), encoded.decode())


@settings(max_examples=15, deadline=None)
@given(st.integers(17, 40), st.integers(17, 60), st.floats(0.6, 12), st.sampled_from([0, 2, 5, 8]))
def test_a_fit_has_the_planned_bits(out, inputs, rate, bits):
    budget = rate * out * inputs
    form = SigmoidFitter(state_bits=bits).configure((out, inputs), budget)
    if form is None:
        return
    encoded = fit(randn(out, inputs), form, effort=0.01)
    assert encoded.settings == form
    assert encoded.payload_bits() == 8 * len(encoded.to_payload()) == SigmoidFitter().planned_bits((out, inputs), form)
    assert encoded.payload_bits() <= budget
    again = Sigmoid.from_payload(encoded.shape, encoded.settings, encoded.to_payload())
    assert torch.equal(again.decode(), encoded.decode())


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 400), st.integers(1, 400), st.floats(0, 20), st.sampled_from([0, 2, 4, 8]))
def test_the_largest_dq_within_the_budget_is_chosen(out, inputs, rate, bits):
    shape, budget = (out, inputs), rate * out * inputs
    form = SigmoidFitter(state_bits=bits).configure(shape, budget)
    if form is not None:
        assert form.payload_bits(shape) <= budget
        assert SigmoidFitter(dq=form.dq + 1, state_bits=form.state_bits).configure(shape, budget) is None
        if bits:
            assert form.state_bits == bits
    elif bits:
        smallest = form_of(1, 2, 6, math.ceil(out / TILE[0]), math.ceil(inputs / TILE[1]), bits)
        assert smallest.payload_bits(shape) > budget


def test_options_fix_single_settings():
    fixed = form_of(9, 3, shifts=4, row_blocks=1, col_blocks=1, state_bits=7).to_json()
    assert SigmoidFitter(**fixed).configure((300, 300), 1e6).to_json() == fixed
    assert SigmoidFitter(**fixed).configure((300, 300), 100) is None
    free = SigmoidFitter().configure((300, 300), 1e5)
    assert free.shifts == 6 and free.dq > 1 and free.dmu % 2 == 0
    for option in ({'state_bits': 9}, {'shifts': 100}, {'row_blocks': 301}):
        with pytest.raises(RiemError):
            SigmoidFitter(**option).configure((300, 300), 1e6)


# ---- payloads and settings that lie

SHAPE, FORM = (6, 7), form_of(3, 2, shifts=2, row_blocks=2, col_blocks=1, state_bits=5)
JSON = FORM.to_json()
PAYLOAD = payload_of(SHAPE, FORM)


@pytest.mark.parametrize('length', [0, 1, len(PAYLOAD) // 2, len(PAYLOAD) - 1])
def test_a_truncated_payload_is_refused(length):
    with pytest.raises(RiemError, match=f'expected {len(PAYLOAD)} bytes, found {length}'):
        Sigmoid.from_payload(SHAPE, FORM, PAYLOAD[:length])


def test_an_extended_payload_or_another_shape_is_refused():
    for shape, payload in ((SHAPE, PAYLOAD + b'\0'), ((7, 7), PAYLOAD)):
        with pytest.raises(RiemError, match='bytes'):
            Sigmoid.from_payload(shape, FORM, payload)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 8 * len(PAYLOAD) - 1))
def test_a_flipped_bit_gives_another_object_or_one_error(position):
    damaged = bytearray(PAYLOAD)
    damaged[position // 8] ^= 1 << position % 8
    try:
        encoded = Sigmoid.from_payload(SHAPE, FORM, bytes(damaged))
    except RiemError:
        return
    assert encoded.to_payload() == damaged and not encoded.decode().isnan().any()


@settings(max_examples=100, deadline=None)
@given(st.binary(min_size=len(PAYLOAD), max_size=len(PAYLOAD)))
def test_random_bytes_give_another_object_or_one_error(payload):
    try:
        encoded = Sigmoid.from_payload(SHAPE, FORM, payload)
    except RiemError:
        return
    assert encoded.to_payload() == payload
    encoded.decode()


@pytest.mark.parametrize('place', [0, 2 * 3, 4 * 3 * 2 + 2, 4 * 3 * 2 + 4])
def test_floats_that_are_not_finite_are_refused(place):
    damaged = PAYLOAD[:place] + struct.pack('<e', float('nan')) + PAYLOAD[place + 2 :]
    with pytest.raises(RiemError, match='finite'):
        Sigmoid.from_payload(SHAPE, FORM, damaged)


ANYTHING = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.lists(st.integers())


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(st.sampled_from([*JSON, 'x']), ANYTHING))
def test_other_settings_are_refused(changes):
    for form in ({**JSON, **changes}, changes):
        if form != JSON or any(type(form[key]) is not int for key in form):
            with pytest.raises(RiemError):
                Sigmoid.from_record(SHAPE, form, PAYLOAD)


@pytest.mark.parametrize('key', JSON)
@pytest.mark.parametrize('value', [True, None, 2.0, '2', -1, 0, 1 << 20, 10**4000])
def test_each_setting_is_checked(key, value):
    with pytest.raises(RiemError) as raised:
        Sigmoid.from_record(SHAPE, {**JSON, key: value}, PAYLOAD)
    assert '\n' not in str(raised.value) and len(str(raised.value)) < 500
    with pytest.raises(RiemError):
        Sigmoid.from_record(SHAPE, {name: JSON[name] for name in JSON if name != key}, PAYLOAD)


@pytest.mark.parametrize('blocks', [{'row_blocks': 7}, {'col_blocks': 8}])
def test_more_blocks_than_neurons_are_refused(blocks):
    form = dataclasses.replace(FORM, **blocks)
    with pytest.raises(RiemError, match='more blocks than neurons'):
        Sigmoid.from_payload(SHAPE, form, payload_of(SHAPE, form))
    with pytest.raises(RiemError, match='more blocks than neurons'):
        fit(randn(*SHAPE), form)


def test_a_small_payload_cannot_ask_for_much_memory():
    """A quarter of a megabyte would otherwise become terabytes of sigmoid arguments."""
    shape, form = (1 << 20, 2), form_of(1, 1 << 12, shifts=64, state_bits=2)
    with pytest.raises(RiemError, match='arguments'):
        Sigmoid.from_payload(shape, form, bytes(form.payload_bits(shape) // 8))


# ---- fitting


def falling_gaussian(rows=128, columns=256, seed=0):
    """A Gaussian matrix whose singular values are replaced by ``1 / sqrt(k)``; float32 ``(rows, columns)``."""
    generator = torch.Generator().manual_seed(seed)
    gaussian = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    left, _, right = torch.linalg.svd(gaussian, full_matrices=False)
    falling = torch.arange(1, rows + 1, dtype=torch.float64) ** -0.5
    return (left * falling @ right).float()


def test_five_decibels_better_than_the_svd_with_as_many_parameters():
    """The case of the paper: Dq 52, Dmu 14, 8-bit states, one tile, against the unquantised SVD of rank 64."""
    weight, rank = falling_gaussian(), 64
    form = form_of(52, 14, state_bits=8)
    assert form.parameter_count((128, 256)) < rank * (128 + 256)
    singular = torch.linalg.svdvals(weight.double())
    svd = float(10 * torch.log10(singular.square().sum() / singular[rank:].square().sum()))
    assert snr(weight, fit(weight, form).decode()) >= svd + 5


def test_more_bytes_fit_better():
    weight = randn(40, 60)
    found = []
    for rate in (2, 4, 8, 16):
        form = SigmoidFitter().configure((40, 60), rate * weight.numel())
        found.append(snr(weight, fit(weight, form, effort=0.5).decode()))
    assert found == sorted(found) and found[0] > 2 and found[-1] > 25


def test_few_state_bits_cost_less_than_rounding_to_the_nearest_level():
    """To the nearest level, 3 bits would cost 5.6 dB of the 8.8 dB."""
    weight = randn(40, 60)
    fine, coarse = (snr(weight, fit(weight, form_of(12, 4, state_bits=bits), effort=0.5).decode()) for bits in (8, 3))
    assert fine > 8 and coarse > fine - 5


def test_the_same_seed_gives_the_same_bytes():
    weight, form = randn(30, 40), form_of(8, 4)
    first, again, other = (fit(weight, form, seed=seed, effort=0.1).to_payload() for seed in (3, 3, 4))
    assert first == again != other


def test_a_fit_draws_from_no_global_generator():
    weight, form = randn(30, 40), form_of(8, 4)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    fit(weight, form, effort=0.1)
    assert torch.equal(torch.get_rng_state(), state)


def test_of_several_seeds_one_of_the_better_ones_survives():
    weight = randn(48, 80)
    form = SigmoidFitter().configure((48, 80), 8 * weight.numel())
    alone = [fit(weight, form, seed=seed) for seed in (4, 5, 6, 7)]
    together = fit(weight, form, seed=4, seeds=4)
    assert together.to_payload() in [fit.to_payload() for fit in alone]
    found = sorted((snr(weight, fit.decode()) for fit in alone), reverse=True)
    assert snr(weight, together.decode()) > found[-1] + 0.3


def test_several_seeds_give_the_same_bytes_again():
    weight, form = randn(30, 40), form_of(8, 4)
    first, again = (fit(weight, form, seed=5, seeds=3, effort=0.3).to_payload() for _ in range(2))
    assert first == again


@pytest.mark.parametrize('seeds', [1, 3])
@pytest.mark.parametrize('effort', [0.01, 0.2])
def test_progress_goes_up_to_one(seeds, effort):
    seen = []
    fit(randn(20, 30), form_of(4, 2), seeds=seeds, effort=effort, progress=seen.append)
    assert seen == sorted(seen) and 0 < seen[0] < 0.3 and seen[-1] == 1.0


@pytest.mark.parametrize('blocks', [(1, 1), (2, 3)])
@pytest.mark.parametrize('side', ['input', 'output', 'both'])
def test_a_weighted_fit_is_better_where_the_weights_are(side, blocks):
    weight = randn(30, 42)
    rows, columns = torch.ones(30), torch.ones(42)
    if side != 'input':
        rows[:10] = 100.0
    if side != 'output':
        columns[20:] = 100.0
    form = form_of(6, 4, row_blocks=blocks[0], col_blocks=blocks[1])
    arguments = {
        'input_metric': None if side == 'output' else torch.diag(columns) * 7,
        'output_weights': None if side == 'input' else rows / 3,
    }
    plain = (weight - fit(weight, form, effort=0.5).decode()).square()
    fitted = (weight - fit(weight, form, effort=0.5, **arguments).decode()).square()
    pairs = rows[:, None] * columns
    assert (pairs * fitted).sum() < 0.8 * (pairs * plain).sum()
    assert fitted[pairs == pairs.min()].mean() > plain[pairs == pairs.min()].mean()


def test_equal_weights_are_no_weights():
    weight, form = randn(20, 30), form_of(5, 2)
    plain = fit(weight, form, effort=0.2)
    equal = fit(weight, form, effort=0.2, input_metric=torch.eye(30) * 4, output_weights=torch.ones(20) * 9)
    assert snr(weight, equal.decode()) == pytest.approx(snr(weight, plain.decode()), abs=0.3)


def test_weights_of_zero_leave_the_rest():
    weight, form = randn(20, 30), form_of(5, 2)
    rows = torch.ones(20)
    rows[7:] = 0
    fitted = fit(weight, form, effort=0.3, output_weights=rows).decode()
    plain = fit(weight, form, effort=0.3).decode()
    assert fitted.isfinite().all() and snr(weight[:7], fitted[:7]) > snr(weight[:7], plain[:7]) + 2
    assert fit(weight, form, effort=0.1, output_weights=rows * 0).decode().isfinite().all()


@pytest.mark.parametrize('scale', [1e-30, 1e-12, 1e-6, 1e6, 1e30])
def test_weights_of_any_scale_fit_as_well(scale):
    weight, form = randn(30, 40), form_of(16, 6)
    reference, found = (snr(x, fit(x, form, effort=0.3).decode()) for x in (weight, weight * scale))
    assert found > reference - 0.5


@pytest.mark.parametrize('mean', [5.0, -100.0, 1e4])
def test_a_mean_far_from_zero_costs_nothing(mean):
    weight, form = randn(30, 40), form_of(16, 6)
    reference, found = (snr(x, fit(x, form, effort=0.3).decode()) for x in (weight, weight + mean))
    assert found > reference - 0.5


@pytest.mark.parametrize('value', [0.0, 0.1, -1e3 / 3, 1e-20])
def test_a_constant_matrix_is_exact(value):
    weight = torch.full((20, 30), value)
    assert torch.equal(fit(weight, form_of(4, 2), effort=0.1).decode(), weight)


@pytest.mark.parametrize(
    ('weight', 'least'),
    [
        (randn(30, 1) @ randn(1, 40), 15),
        (randn(15, 40).repeat(2, 1), 10),
        (torch.cat([randn(1, 40), torch.zeros(29, 40)]), 5),
        (randn(30, 40) * (randn(30, 40, seed=1) > 2), 5),
        (torch.eye(30, 40), 3),
        (randn(30, 40).index_put((torch.tensor(3), torch.tensor(5)), torch.tensor(1e4)), 10),
    ],
    ids=['rank1', 'repeated', 'one-row', 'sparse', 'eye', 'outlier'],
)
@pytest.mark.parametrize('bits', [4, 8])
def test_degenerate_matrices(weight, least, bits):
    decoded = fit(weight, form_of(16, 6, state_bits=bits)).decode()
    assert decoded.isfinite().all() and snr(weight, decoded) > least


@pytest.mark.parametrize('shape', [(1, 1), (1, 9), (9, 1), (2, 3), (17, 17)])
@pytest.mark.parametrize('form', [form_of(1, 1), form_of(20, 4, state_bits=2)])
def test_tiny_matrices(shape, form):
    weight = randn(*shape)
    decoded = fit(weight, form, effort=0.3).decode()
    # no worse than the mean, but for the rounding of few bits
    assert decoded.isfinite().all()
    assert (weight - decoded).square().sum() <= 1.05 * (weight - weight.mean()).square().sum() + 1e-6


@pytest.mark.parametrize('value', [float('nan'), float('inf')])
def test_arguments_that_make_no_sense_are_refused(value):
    weight, form = randn(5, 6), form_of(2, 2)
    with pytest.raises(RiemError, match='input metric'):
        fit(weight, form, input_metric=torch.eye(6) * value)
    with pytest.raises(RiemError, match='output weights'):
        fit(weight, form, output_weights=torch.ones(5) * value)
    with pytest.raises(RiemError, match=r'input metric has shape \(5, 5\)'):
        fit(weight, form, input_metric=torch.eye(5))
    with pytest.raises(RiemError, match='two non-empty dimensions'):
        fit(weight[None], form)
    weight[2, 3] = value
    with pytest.raises(RiemError, match='NaN or infinite'):
        fit(weight, form)


@pytest.mark.parametrize('dtype', [torch.float64, torch.float16, torch.bfloat16])
def test_other_dtypes_are_fitted_too(dtype):
    weight = randn(20, 30).to(dtype)
    decoded = fit(weight, form_of(12, 4), effort=0.3).decode()
    assert decoded.dtype == torch.float32 and snr(weight.float(), decoded) > 5


@pytest.mark.parametrize('blocks', [(1, 1), (2, 3)])
def test_chunks_of_every_size_fit_alike(monkeypatch, blocks):
    """What other devices do: more tiles in one product. The metric learns from them in another order."""
    weight, form = randn(30, 41), form_of(12, 4, row_blocks=blocks[0], col_blocks=blocks[1])
    found = []
    for sigmoids in (1, 1 << 26):
        for name in ('CHUNK', 'ROUNDING_CHUNK'):
            monkeypatch.setattr(fit_module, name, dict.fromkeys((True, False), sigmoids))
        found.append(snr(weight, fit(weight, form, effort=0.3).decode()))
    assert found[0] == pytest.approx(found[1], abs=1.5 if max(blocks) > 1 else 0)


def test_a_fit_that_gains_no_more_is_idle():
    fit = Fit(torch.full((20, 30), 2.0), form_of(4, 2), None, 0)
    for _ in range(fit_module.SWEEPS):
        before, idle = fit.error, fit.idle
        fit.sweep(1.0)
        gained = fit.error < (1 - fit_module.MIN_GAIN) * before
        assert fit.idle == (0 if gained else idle + 1)
    assert fit.idle >= fit_module.PATIENCE


@pytest.mark.parametrize('sweeps', [4, 5, 6, 11, 56])
def test_the_schedule_has_as_many_steps_as_asked_for(sweeps):
    schedule = fit_module.schedule_of(sweeps)
    assert sum(repeats for _, repeats in schedule) == sweeps and schedule[0] == (0.0, 1)
    done = [sum(repeats for _, repeats in schedule[:number]) / sweeps for number in range(len(schedule))]
    assert [share for share, _ in schedule] == done
