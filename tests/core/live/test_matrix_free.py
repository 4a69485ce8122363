"""Products with represented weights against dense ones, block by block."""

from __future__ import annotations

import copy
import functools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from mmriem.core import get_representation
from mmriem.core.file.manifest import Source
from mmriem.core.live import matrix_free
from mmriem.core.live.convert import make_dense, make_live
from mmriem.core.live.layers import RieMLinear
from mmriem.core.live.states import WeightStates
from mmriem.core.live.unmade import UnmadeWeight
from mmriem.core.pipeline.compress import compress
from mmriem.core.pipeline.settings import Settings
from mmriem.core.representations.blocks import EVERYTHING, PackedTensor, spans
from mmriem.core.representations.grid import Grid

REPRESENTATIONS = ('bilinear', 'lattice', 'sigmoid')
CLOSE = dict(rtol=1e-5, atol=1e-5)

CONVOLUTIONS = {
    'plain': ((40, 24, 3, 3), dict(padding=1)),
    'pointwise': ((40, 32, 1, 1), dict(stride=2)),
    'rectangular': ((24, 16, 2, 3), dict(stride=(1, 2), padding=(0, 2), dilation=(2, 1))),
    'same': ((24, 16, 3, 3), dict(padding='same')),
    'grouped': ((42, 8, 3, 3), dict(groups=3, padding=1)),
    'depthwise': ((96, 1, 3, 3), dict(groups=96)),
}


@functools.cache
def encode(name, shape, seed=0):
    """A fit of no quality; two or more tiles where it is a sigmoid."""
    fitter = get_representation(name).fitter_with(row_blocks=3, col_blocks=2, effort=0.01)
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return fitter.fit(weight, fitter.configure(shape, 6.0 * weight.numel()))


def live_of(encoded):
    return get_representation(encoded.name).live


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """About seven rows of a hundred columns."""
    monkeypatch.setattr(matrix_free, 'BLOCK', 700)


def inputs(*shape, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def trained(encoded):
    return {name: state.clone().requires_grad_() for name, state in encoded.states().items()}


def gradients(y, of):
    upstream = inputs(*y.shape, seed=2)
    return torch.autograd.grad(y, of, upstream)


# ---- the products ----


@pytest.mark.parametrize('packed', [False, True])
@pytest.mark.parametrize('name', REPRESENTATIONS)
def test_linear_is_the_dense_product(name, packed):
    encoded = encode(name, (70, 110))
    states = live_of(encoded).packed_states(encoded) if packed else encoded.states()
    for x in (inputs(110), inputs(3, 5, 110), inputs(0, 110)):
        y = matrix_free.linear(x, live_of(encoded).factors(), states, torch.float32)
        torch.testing.assert_close(y, F.linear(x, encoded.decode()), **CLOSE)


@pytest.mark.parametrize('case', CONVOLUTIONS)
@pytest.mark.parametrize('name', REPRESENTATIONS)
def test_conv2d_is_the_dense_convolution(name, case):
    shape, how = CONVOLUTIONS[case]
    groups = how.get('groups', 1)
    encoded = encode(name, (shape[0], shape[1] * shape[2] * shape[3]))
    for states in (encoded.states(), live_of(encoded).packed_states(encoded)):
        for x in (inputs(2, shape[1] * groups, 9, 7), inputs(shape[1] * groups, 5, 6)):
            y = matrix_free.conv2d(x, live_of(encoded).factors(groups > 1), states, torch.float32, shape, **how)
            torch.testing.assert_close(y, F.conv2d(x, encoded.decode().view(shape), **how), **CLOSE)


@pytest.mark.parametrize('case', [None, 'plain', 'grouped'])
@pytest.mark.parametrize('name', REPRESENTATIONS)
def test_gradients_are_those_of_the_regenerated_weight(name, case):
    shape, how = (70, 110), {}
    x = inputs(4, 110)
    if case:
        shape, how = CONVOLUTIONS[case]
        x = inputs(2, shape[1] * how.get('groups', 1), 6, 5)
    encoded = encode(name, (shape[0], int(np.prod(shape[1:]))))
    kind, states = live_of(encoded), trained(encoded)
    x.requires_grad_()
    factors, weight = kind.factors('groups' in how), kind.regenerate(states).view(shape)
    if case:
        found, expected = matrix_free.conv2d(x, factors, states, x.dtype, shape, **how), F.conv2d(x, weight, **how)
    else:
        found, expected = matrix_free.linear(x, factors, states, x.dtype), F.linear(x, weight)
    wanted = (x, *states.values())
    for one, other in zip(gradients(found, wanted), gradients(expected, wanted)):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5 * float(other.abs().max()))


@pytest.mark.parametrize('name', REPRESENTATIONS)
def test_gradients_of_inputs_alone_and_of_some_states(name):
    encoded = encode(name, (30, 50))
    kind, x = live_of(encoded), inputs(4, 50).requires_grad_()
    y = matrix_free.linear(x, kind.factors(), live_of(encoded).packed_states(encoded), torch.float32)
    torch.testing.assert_close(gradients(y, x)[0], inputs(*y.shape, seed=2) @ encoded.decode(), **CLOSE)
    states, last = encoded.states(), kind.state_names[-1]
    states[last] = states[last].clone().requires_grad_()
    found = gradients(matrix_free.linear(x.detach(), kind.factors(), states, torch.float32), states[last])
    expected = gradients(F.linear(x.detach(), kind.regenerate(states)), states[last])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('name', REPRESENTATIONS)
def test_autocast_and_half_precision(name):
    encoded = encode(name, (30, 50))
    x, states = inputs(4, 50), trained(encoded)
    expected = F.linear(x, encoded.decode())
    with torch.autocast('cpu', torch.bfloat16):
        y = matrix_free.linear(x, live_of(encoded).factors(), states, torch.float32)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), expected, rtol=0.03, atol=0.2)
    y.sum().backward()
    assert all(state.grad.dtype == torch.float32 for state in states.values())
    live = live_of(encoded)
    half = matrix_free.linear(x.half(), live.factors(), live.packed_states(encoded), torch.float16)
    assert half.dtype == torch.float16
    torch.testing.assert_close(half.float(), expected, rtol=0.01, atol=0.05)


def test_second_derivatives_are_refused():
    encoded = encode('bilinear', (30, 50))
    x = inputs(4, 50).requires_grad_()
    y = matrix_free.linear(x, live_of(encoded).factors(), encoded.states(), torch.float32)
    (gradient,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match='once_differentiable'):
        gradient.sum().backward()


# ---- blocks ----


@pytest.mark.parametrize('most', [1, 111, 700, 10**6])
@pytest.mark.parametrize('name', REPRESENTATIONS)
def test_blocks_are_consecutive_rows_of_bounded_size(name, most):
    encoded = encode(name, (70, 110))
    weight, at = encoded.decode(), 0
    for states in (encoded.states(), live_of(encoded).packed_states(encoded)):
        at = 0
        for block in live_of(encoded).blocks(states, most):
            assert block.inputs == EVERYTHING and block.outputs.start == at
            made = live_of(encoded).regenerate(block.states)
            torch.testing.assert_close(made, weight[block.outputs], **CLOSE)
            assert made.numel() <= max(most, 110)
            at = block.outputs.stop
        assert at == live_of(encoded).rows(states) == 70


def test_the_input_side_of_a_low_rank_weight_is_divided_between_channels():
    encoded = encode('bilinear', (24, 20 * 9))
    blocks = list(live_of(encoded).factors()[0].blocks(encoded.states(), 300, 9))
    assert len(blocks) > 2 and all(block.inputs.start % 9 == 0 for block in blocks)
    assert sum(len(block.states['p']) for block in blocks) == 180


def test_spans_cover_a_range():
    assert [x for part in spans(3, 20, 4) for x in range(20)[part]] == list(range(3, 20))
    assert list(spans(5, 5, 2)) == []


# ---- packed states ----


@given(st.integers(1, 8), st.integers(1, 11), st.integers(1, 5), st.integers(0, 99))
def test_packed_states_are_those_of_the_grid(bits, columns, rows, seed):
    rng = np.random.default_rng(seed)
    codes = torch.from_numpy(rng.integers(0, 2**bits, (2, rows, columns), dtype=np.uint8))
    grid = Grid(torch.randn(columns).half().float(), torch.rand(columns).half().float() + 0.01, bits)
    packed = PackedTensor.of(codes, grid, unit=0.25)
    assert packed.shape == (2, rows, columns)
    assert packed.packed.numel() == 2 * rows * -(-columns * bits // 8)
    for index in (EVERYTHING, slice(1, 2), (EVERYTHING, slice(rows // 2, rows)), 0):
        torch.testing.assert_close(packed[index], grid.values(codes[index]) * 0.25, rtol=0, atol=0)


@pytest.mark.parametrize('name', REPRESENTATIONS)
def test_packed_states_have_the_values_of_the_others_in_fewer_bytes(name):
    encoded = encode(name, (70, 110))
    states, packed = encoded.states(), live_of(encoded).packed_states(encoded)
    assert set(states) == set(packed)
    for key, state in states.items():
        assert tuple(packed[key].shape) == tuple(state.shape)
        held = packed[key] if isinstance(packed[key], torch.Tensor) else packed[key][EVERYTHING]
        torch.testing.assert_close(held.float(), state, rtol=0, atol=0)
    assert sum(x.nbytes for x in packed.values()) < 0.4 * sum(x.nbytes for x in states.values())


def test_a_lattice_of_large_integers_is_held_in_wider_ones():
    fitted = encode('lattice', (20, 30))
    for factor, dtype in ((1, torch.int8), (100, torch.int16), (10**6, torch.int32)):
        codes = fitted.codes.clip(-2, 2) * factor + factor
        wider = type(fitted).of(codes.astype(np.int32), 1.0, np.zeros(20, np.int32), np.zeros(30, np.int32))
        assert live_of(wider).packed_states(wider)['z'].dtype == dtype
        assert np.array_equal(live_of(wider).packed_states(wider)['z'].numpy(), codes)


# ---- a weight that is not there ----


class Made:
    """Counts how often the weight is made."""

    most = None

    def __init__(self, shape):
        self.shape, self.count = shape, 0
        self.encoded = encode('bilinear', (shape[0], int(np.prod(shape[1:]))))

    def factors(self, grouped):
        return live_of(self.encoded).factors(grouped), live_of(self.encoded).packed_states(self.encoded)

    def made(self):
        self.count += 1
        return self.encoded.decode().view(self.shape)

    def unmade(self):
        return UnmadeWeight(self, self.shape, torch.float32, torch.device('cpu'))


def test_functional_layers_apply_an_unmade_weight_in_blocks():
    source, bias = Made((30, 50)), inputs(30)
    for y in (
        F.linear(inputs(2, 50), source.unmade(), bias),
        F.linear(inputs(2, 50), weight=source.unmade(), bias=bias),
    ):
        torch.testing.assert_close(y, F.linear(inputs(2, 50), source.encoded.decode(), bias), **CLOSE)
    source = Made((24, 16, 3, 3))
    y = F.conv2d(inputs(2, 16, 8, 8), source.unmade(), bias[:24], 2, padding=1)
    expected = F.conv2d(inputs(2, 16, 8, 8), source.encoded.decode().view(24, 16, 3, 3), bias[:24], 2, 1)
    torch.testing.assert_close(y, expected, **CLOSE)
    assert source.count == 0


def test_whatever_else_reads_an_unmade_weight_has_it_made():
    source = Made((30, 50))
    weight = source.unmade()
    assert tuple(weight.shape) == (30, 50) and weight.dtype == torch.float32 and weight.dim() == 2
    assert weight.device.type == 'cpu' and weight.numel() == 1500 and 'UnmadeWeight' in repr(weight)
    assert source.count == 0
    torch.testing.assert_close(weight @ inputs(50), source.encoded.decode() @ inputs(50))
    torch.testing.assert_close(torch.stack([weight, weight])[1].mean(), source.encoded.decode().mean())
    torch.testing.assert_close(weight.detach().numpy(), source.encoded.decode().numpy())
    assert source.count > 0


# ---- live modules ----


class Net(nn.Module):
    """A weight of each kind that is read in another way as well."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(8, 24, 3, padding=1, padding_mode='circular')
        self.grouped = nn.Conv2d(24, 48, 3, groups=2, bias=False)
        self.up = nn.ConvTranspose2d(48, 24, 2, stride=2)
        self.attention = nn.MultiheadAttention(24, 2, batch_first=True)
        self.head = nn.Linear(24, 32)

    def forward(self, x):
        tokens = self.up(self.grouped(F.relu(self.conv(x)))).flatten(2).transpose(1, 2)
        return self.head(self.attention(tokens, tokens, tokens)[0]).sum(1)


def live_net(representation, **options):
    torch.manual_seed(3)
    net = Net()
    make_live(net, **{'representation': representation, 'ratio': 0.3, 'materialize': False, **options})
    return net


def held(net):
    return {name: module for name, module in net.named_modules() if isinstance(module, WeightStates)}


@pytest.mark.parametrize('representation', REPRESENTATIONS)
def test_a_network_computes_and_learns_what_it_does_with_its_weights(representation):
    net = live_net(representation)
    plain = copy.deepcopy(net)
    for states in held(plain).values():
        states.materialize = True
    applied_in_blocks = {name for name, states in held(net).items() if not states.materialize}
    expected = {'conv', 'grouped', 'attention.out_proj', 'head'}
    assert applied_in_blocks == {f'{name}.riem.weight' for name in expected}
    x = inputs(2, 8, 4, 4)
    torch.testing.assert_close(net(x), plain(x), **CLOSE)
    net(x).square().sum().backward()
    plain(x).square().sum().backward()
    for one, other in zip(net.parameters(), plain.parameters()):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-3, atol=1e-4 * float(other.grad.abs().max()))
    with torch.no_grad():
        torch.testing.assert_close(net.eval()(x), plain.eval()(x), **CLOSE)


@pytest.mark.parametrize('representation', REPRESENTATIONS)
def test_states_of_a_file_are_packed_when_a_network_is_run(representation):
    torch.manual_seed(4)
    settings = Settings.of(
        representation=representation, ratio=0.6 if representation != 'lattice' else 0.3, effort=0.05
    )
    archive = compress(Net(), settings, dataset_meta={}, source=Source('net.pth', '0' * 64)).archive
    dense = Net().eval()
    dense.load_state_dict(archive.decode())
    net = live_net(representation).eval()
    net.load_state_dict(archive.decode())
    states = net.head.riem.weight
    x = inputs(2, 8, 4, 4)
    with torch.no_grad():
        torch.testing.assert_close(net(x), dense(x), **CLOSE)
    assert states.values.numel() == states.fixed.numel() == 0
    other = live_net(representation).eval()
    other.load_state_dict(net.state_dict())
    assert all(torch.equal(one, two) for one, two in zip(net.state_dict().values(), other.state_dict().values()))
    with torch.no_grad():
        torch.testing.assert_close(copy.deepcopy(net)(x), other(x), **CLOSE)


@pytest.mark.parametrize('representation', REPRESENTATIONS)
def test_packed_states_are_unpacked_for_training(representation):
    net = live_net(representation).eval()
    states = net.head.riem.weight
    before = {name: state.clone() for name, state in states.states().items()}
    parameter = states.values
    assert parameter.numel() == 0
    net(inputs(2, 8, 4, 4)).sum().backward()  # in eval mode, as frozen norms are
    assert states.values is parameter and parameter.grad.numel() == parameter.numel() > 0
    assert all(torch.equal(before[name], state) for name, state in states.states().items())
    net.eval()
    assert parameter.grad.numel() == parameter.numel() > 0  # gradients are being summed up
    net.zero_grad()
    net.eval()
    assert parameter.numel() == 0
    net.train()
    with torch.no_grad():
        parameter.mul_(1.5)
    net.eval()
    moved = {'bilinear': 'p', 'lattice': 'row', 'sigmoid': 'w'}[representation]
    assert parameter.numel() > 0 and not torch.equal(before[moved], states.states()[moved])


def test_half_precision_keeps_packed_states():
    net = live_net('sigmoid').eval()
    with torch.no_grad():
        expected = net(inputs(2, 8, 4, 4))
        found = net.half()(inputs(2, 8, 4, 4).half())
    assert net.head.riem.weight.values.numel() == 0 and found.dtype == torch.float16
    torch.testing.assert_close(found.float(), expected, rtol=0.05, atol=0.05 * float(expected.abs().max()))


def test_a_linear_layer_by_itself():
    layer = RieMLinear(60, 40, representation='bilinear', ratio=0.3, materialize=False)
    torch.testing.assert_close(layer(inputs(5, 60)), F.linear(inputs(5, 60), layer.weight, layer.bias), **CLOSE)
    assert 0.5 < float(layer.weight.detach().std()) * 60**0.5 * 3**0.5 < 1.5
    assert list(make_dense(layer)) == ['weight'] and type(layer.weight) is nn.Parameter


def test_a_weight_that_something_else_reads_has_its_gradient():
    layer = RieMLinear(60, 40, representation='bilinear', ratio=0.3, materialize=False).eval()
    assert layer.riem.weight.values.numel() == 0
    layer.weight.square().sum().backward()
    assert layer.riem.weight.values.grad.abs().max() > 0
