"""Modules that hold states, with torch alone."""

from __future__ import annotations

import copy
import io
import pickle
from collections import OrderedDict

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from mmriem.core import get_representation
from mmriem.core.errors import RiemError
from mmriem.core.file import reading
from mmriem.core.file.archive import Archive, WeightRecord
from mmriem.core.file.manifest import Source
from mmriem.core.live.convert import make_dense, make_live, writable_weights
from mmriem.core.live.fit_on_load import find_unfitted, fit_all
from mmriem.core.live.layers import RieMConv2d, RieMLinear
from mmriem.core.live.module import LiveModule, live_class
from mmriem.core.live.states import INTEGERS, WeightStates
from mmriem.core.pipeline.compress import compress
from mmriem.core.pipeline.settings import Settings
from mmriem.core.representations.lattice.problem import Problem
from mmriem.core.weights.views import WeightView

REPRESENTATIONS = ('bilinear', 'lattice', 'sigmoid')


class Net(nn.Module):
    """One of each kind of weight; small enough to compress in a test."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(8, 24, 3, padding=1)
        self.norm = nn.BatchNorm2d(24)
        self.grouped = nn.Conv2d(24, 48, 3, groups=2, bias=False)
        self.up = nn.ConvTranspose2d(48, 24, 2, stride=2, groups=2)
        self.attention = nn.MultiheadAttention(24, 2, batch_first=True)
        self.table = nn.Parameter(torch.randn(49, 24))
        self.tiny = nn.Linear(24, 4)
        self.head = nn.Linear(24, 32)

    def forward(self, x):
        x = self.up(self.grouped(F.relu(self.norm(self.conv(x)))))
        tokens = x.flatten(2).transpose(1, 2) + self.table[: x.shape[2] * x.shape[3]].mean(0)
        tokens = self.attention(tokens, tokens, tokens)[0]
        return self.head(tokens).sum(1) + self.tiny(tokens).mean(-1).sum(1, keepdim=True)


WEIGHTS = ['table', 'conv.weight', 'grouped.weight', 'up.weight', 'attention.in_proj_weight']
WEIGHTS += ['attention.out_proj.weight', 'head.weight']


def seeded(make, seed=0):
    torch.manual_seed(seed)
    return make()


def live_net(seed=1, **options):
    net = seeded(Net, seed)
    size = {} if 'bits' in options else {'ratio': 0.5}
    make_live(net, **{'representation': 'bilinear', **size, **options})
    return net


def inputs(count=2):
    return torch.randn(count, 8, 4, 4, generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope='module', params=REPRESENTATIONS)
def archive(request) -> Archive:
    """`Net`, compressed; the table and the tiny layer stay dense."""
    ratio = 0.4 if request.param == 'lattice' else 0.6  # a small weight stays dense where that takes no more bits
    settings = Settings.of(representation=request.param, ratio=ratio, exclude=('table',), effort=0.05)
    made = compress(seeded(Net), settings, dataset_meta={}, source=Source('net.pth', '0' * 64)).archive
    return reading.from_bytes(made.to_bytes())


def plain_tensors(state_dict):
    """As an ordinary checkpoint has them."""
    return OrderedDict((key, tensor.detach().clone()) for key, tensor in state_dict.items())


# ---- what a live module computes ----


@pytest.mark.parametrize('representation', REPRESENTATIONS)
def test_a_live_module_computes_what_the_ordinary_one_does_with_its_weights(representation):
    live, plain = live_net(representation=representation), seeded(Net, 1)
    with torch.no_grad():
        for name in WEIGHTS:
            owner, _, attribute = name.rpartition('.')
            weight = getattr(live.get_submodule(owner), attribute)
            target = dict(plain.named_parameters())[name]
            assert weight.shape == target.shape
            target.copy_(weight)
    torch.testing.assert_close(live(inputs()), plain(inputs()), rtol=1e-6, atol=1e-6)


def test_kinds_and_keys():
    net = live_net(exclude=('head.*',))
    replaced = [name for name in WEIGHTS if name != 'head.weight']
    held = {name for name, module in net.named_modules() if isinstance(module, WeightStates)}
    expected = set()
    for name in replaced:
        owner, _, attribute = name.rpartition('.')
        expected.add('.'.join(filter(None, (owner, 'riem', attribute))))
    assert held == expected
    keys = {f'{name}.{state}' for name in expected for state in 'qp'}
    assert set(net.state_dict()) == set(seeded(Net).state_dict()) - set(replaced) | keys
    assert type(net.conv) is RieMConv2d and type(net.attention.out_proj).__name__.startswith('RieM')
    assert isinstance(net.up, nn.ConvTranspose2d) and isinstance(net.up, LiveModule)
    assert 'bilinear: q=(24, ' in str(net)


def test_returned_names_and_weights_too_small_for_states():
    net = seeded(Net)
    assert make_live(net, representation='bilinear', ratio=0.01) == WEIGHTS
    assert torch.equal(net.head.weight, seeded(Net).head.weight)
    assert 'head.riem.weight.dense' in net.state_dict()


def test_fresh_states_have_the_mean_and_the_spread_of_the_weight():
    for representation in REPRESENTATIONS:
        net, plain = live_net(representation=representation), seeded(Net, 1)
        for name in ('conv', 'up', 'head'):
            weight, start = getattr(net, name).weight, getattr(plain, name).weight
            torch.testing.assert_close(weight.std(), start.std(), rtol=1e-3, atol=0)
            assert weight.mean().abs() < 0.2 * start.std()


def test_one_parameter_for_each_weight_with_its_flags():
    net = seeded(Net)
    net.conv.requires_grad_(False)
    net.conv.eval()
    make_live(net, representation='sigmoid', ratio=0.5)
    assert [name for name, _ in net.conv.named_parameters()] == ['bias', 'riem.weight.values']
    assert not net.conv.riem.weight.values.requires_grad and not net.conv.riem.weight.training
    assert net.head.riem.weight.values.requires_grad and net.head.riem.weight.training
    assert net.head.riem.weight.values.dtype == torch.float32 and net.head.riem.weight.values.ndim == 1


TRAINED = [(name, 'frozen') for name in REPRESENTATIONS] + [('lattice', 'straight_through')]


@pytest.mark.parametrize(('representation', 'integers'), TRAINED)
def test_training_the_states_lowers_the_loss(representation, integers):
    """Integers stay as they are while steps move, or the other way round."""
    net = live_net(representation=representation, integers=integers)
    target = torch.randn(2, 32, generator=torch.Generator().manual_seed(4))
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    rate = {'frozen': 1e-3, 'straight_through': 2e-2}[integers] if representation == 'lattice' else 1e-4
    optimiser = torch.optim.Adam(net.parameters(), lr=rate)
    losses = []
    for _ in range(30 if integers == 'straight_through' else 8):
        loss = F.mse_loss(net(inputs()), target)
        losses.append(float(loss.detach()))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert losses[-1] < 0.9 * losses[0]
    held = {'frozen': ('z',), 'straight_through': ('row', 'column')}[integers]
    for name, tensor in net.state_dict().items():
        if '.riem.' in f'.{name}':
            assert torch.equal(before[name], tensor) == (name.split('.')[-1] in held), name
    states = net.head.riem.weight.states()
    if representation == 'lattice':
        nearest = {**states, 'z': states['z'].round()}
        assert torch.equal(net.head.weight, get_representation('lattice').live.regenerate(nearest))
        assert all(parameter.numel() < 4000 for parameter in net.parameters()) or integers == 'straight_through'


def test_gradient_checkpointing_gives_the_same_gradients():
    for reentrant in (True, False):
        gradients = []
        for wrap in (False, True):
            net = live_net().eval()
            x = inputs().requires_grad_()
            out = checkpoint(net, x, use_reentrant=reentrant) if wrap else net(x)
            out.square().sum().backward()
            gradients.append([parameter.grad for parameter in net.parameters()])
        assert all(torch.equal(a, b) for a, b in zip(*gradients))
        assert all(gradient is not None for gradient in gradients[0])


# ---- states from a .riem file ----


@pytest.mark.parametrize('representation', REPRESENTATIONS)
@pytest.mark.parametrize('ratio', [0.01, 0.2])
def test_a_file_brings_its_own_states(archive, representation, ratio):
    """Whatever the model was made with; 0.01 makes every weight dense."""
    net = live_net(representation=representation, ratio=ratio)
    dense = seeded(Net, 2)
    dense.load_state_dict(archive.decode())
    assert str(net.load_state_dict(archive.decode())) == '<All keys matched successfully>'
    records = {record.view.name: record for record in archive.weights}
    assert set(records) == set(WEIGHTS) - {'table'}
    state_dict = net.state_dict()
    for name, record in records.items():
        owner, _, attribute = name.rpartition('.')
        for state, value in record.encoded.states().items():
            assert torch.equal(state_dict[f'{owner}.riem.{attribute}.{state}'], value)
    assert torch.equal(state_dict['riem.table.dense'], dense.table)
    assert torch.equal(state_dict['tiny.weight'], dense.tiny.weight)
    with torch.no_grad():
        torch.testing.assert_close(net.eval()(inputs()), dense.eval()(inputs()), rtol=1e-5, atol=1e-5)


def test_integers_of_a_trellis_are_not_trained():
    weight = torch.randn(32, 48, generator=torch.Generator().manual_seed(3))
    made, _ = Problem.of(weight, trellis=True).solve(0.9)
    for integers in INTEGERS:
        net = nn.Sequential(RieMLinear(48, 32, representation='lattice', bits=4, integers=integers))
        carrier = made.decode()
        carrier.riem = WeightRecord(WeightView('0.weight', (32, 48)), made)
        net.load_state_dict({'0.weight': carrier, '0.bias': torch.zeros(32)})
        assert torch.equal(net.eval()[0].weight, made.decode())
        if integers == 'frozen':
            net.train()
        else:
            with pytest.raises(RiemError, match='--no-trellis'):
                net.train()
            plain, _ = Problem.of(weight).solve(0.9)
            carrier.riem = WeightRecord(WeightView('0.weight', (32, 48)), plain)
            net.load_state_dict({'0.weight': carrier, '0.bias': torch.zeros(32)})
            net.train()


def test_an_optimizer_made_before_loading_trains_what_was_loaded(archive):
    net = live_net(representation='sigmoid', ratio=0.2)
    optimiser = torch.optim.SGD(net.parameters(), lr=1e-3, momentum=0.9)
    averaged = copy.deepcopy(net)
    parameters = list(net.parameters())
    net.load_state_dict(archive.decode())
    assert all(old is new for old, new in zip(parameters, net.parameters()))
    before = net.head.weight.detach().clone()
    net(inputs()).square().sum().backward()
    optimiser.step()
    assert not torch.equal(net.head.weight, before)
    averaged.load_state_dict(net.state_dict())
    assert torch.equal(averaged.head.weight, net.head.weight)


def test_copies_of_a_decoded_state_dict_fill_states_too(archive):
    """MMEngine's EMAHook loads a deep copy."""
    net, other = live_net(), live_net(seed=5)
    net.load_state_dict(archive.decode())
    other.load_state_dict(copy.deepcopy(archive.decode()))
    assert torch.equal(net.head.weight, other.head.weight) and 'head.weight' not in other.state_dict()


@pytest.mark.parametrize('representation', REPRESENTATIONS)
def test_an_ordinary_checkpoint_is_fitted(representation):
    """Nearly the network of the checkpoint; the same states again, from any number of threads and any copy."""
    plain = seeded(Net).eval()
    options = dict(representation=representation, bits=8, effort=0.3)
    nets, found = [], []
    for threads in (1, 2):
        tensors = plain_tensors(plain.state_dict())
        net = live_net(**options).eval()
        unfitted = find_unfitted(net, tensors)
        assert [weight.key for weight in unfitted] == WEIGHTS
        shares = []
        fit_all(unfitted, threads, lambda share, name, shares=shares: shares.append((share, name)))
        assert shares[-1][0] == 1 and {name for _, name in shares} == set(WEIGHTS)
        assert find_unfitted(net, tensors) == [] == find_unfitted(net, copy.deepcopy(tensors))
        assert str(net.load_state_dict(tensors)) == '<All keys matched successfully>'
        nets.append(net)
        found.append(net.state_dict())
    alone = live_net(**options)
    alone.load_state_dict(plain_tensors(plain.state_dict()))
    for states in (found[1], alone.state_dict()):
        assert all(torch.equal(value, found[0][key]) for key, value in states.items())
    error = nets[0](inputs()) - plain(inputs())
    assert error.norm() < 0.4 * plain(inputs()).norm()
    assert nets[0].head.riem.weight.encoded().payload_bits() <= 8 * plain.head.weight.numel()


def test_other_settings_or_another_tensor_need_another_fit():
    tensors = plain_tensors(seeded(Net).state_dict())
    net = live_net(bits=8)
    fit_all(find_unfitted(net, tensors))
    assert len(find_unfitted(live_net(bits=6), tensors)) == len(WEIGHTS)
    tensors['head.weight'].add_(1)
    assert [weight.key for weight in find_unfitted(net, tensors)] == ['head.weight']
    with torch.no_grad():
        net.load_state_dict(tensors)
        assert net.head.weight.mean() > 0.9


def test_a_weight_that_is_not_finite_cannot_be_fitted():
    tensors = plain_tensors(seeded(Net).state_dict())
    tensors['head.weight'][0, 0] = float('nan')
    with pytest.raises(RiemError, match=r'^head\.weight: the weight matrix holds NaN'):
        live_net().load_state_dict(tensors)


def test_a_weight_of_another_shape_is_a_size_mismatch(archive):
    net = Net()
    net.head = nn.Linear(24, 40)
    make_live(net)
    with pytest.raises(RuntimeError, match=r'size mismatch for head\.weight: expected \(40, 24\), found \(32, 24\)'):
        net.load_state_dict(archive.decode(), strict=False)


# ---- checkpoints of live modules ----


def test_a_checkpoint_brings_states_of_any_size(archive, tmp_path):
    trained = live_net()
    trained.load_state_dict(archive.decode())
    torch.save(trained.state_dict(), tmp_path / 'live.pth')
    loaded = torch.load(tmp_path / 'live.pth', weights_only=True)
    other = live_net(seed=6, representation='sigmoid', ratio=0.9)
    assert str(other.load_state_dict(loaded)) == '<All keys matched successfully>'
    assert all(torch.equal(a, b) for a, b in zip(other.state_dict().values(), trained.state_dict().values()))
    assert torch.equal(other.eval()(inputs()), trained.eval()(inputs()))


def test_saved_states_are_the_parameters_memory():
    """Averaging hooks and broadcasts write through the state dict."""
    net = live_net()
    for tensor in net.state_dict().values():
        tensor.zero_()
    assert not net.head.riem.weight.values.any()


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (
            lambda states: states.update(p=states['p'][:-1]),
            r'expected states of a weight \(32, 24\), found .*\(32, 23\)',
        ),
        (lambda states: states.update(p=states['p'][:, 1:]), 'expected states that belong together, found q'),
        (lambda states: states.update(q=states['q'][0, 0], p=states['p'][0, 0]), 'belong together'),
        (lambda states: states.pop('p'), 'expected states of one of bilinear, .*found q'),
        (lambda states: states.update(dense=torch.zeros(1)), 'found dense, p, q'),
        (lambda states: (states.clear(), states.update(dense=torch.zeros(2, 3))), r'\(32, 24\).*\(2, 3\)'),
    ],
)
def test_states_that_do_not_fit(change, message):
    net = live_net()
    before = plain_tensors(net.state_dict())
    prefix = 'head.riem.weight.'
    states = {key[len(prefix) :]: value for key, value in before.items() if key.startswith(prefix)}
    change(states)
    changed = OrderedDict((key, value) for key, value in before.items() if not key.startswith(prefix))
    changed.update({prefix + name: value for name, value in states.items()})
    with pytest.raises(RuntimeError, match=rf'head\.riem\.weight: .*{message}'):
        net.load_state_dict(changed)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


def test_absent_states_are_reported():
    net = live_net()
    rest = {key: value for key, value in net.state_dict().items() if not key.startswith('head.riem')}
    missing = net.load_state_dict(rest, strict=False).missing_keys
    assert missing == ['head.riem.weight.q', 'head.riem.weight.p']


# ---- the kept weight ----


def test_the_weight_is_regenerated_once_in_eval_and_for_each_use_in_training():
    layer = RieMLinear(32, 32, representation='bilinear', ratio=0.5).eval()
    with torch.no_grad():
        assert layer.weight is layer.weight
    with torch.inference_mode():
        kept = layer.weight
    assert not kept.is_inference()
    assert layer.weight is not kept and layer.weight.requires_grad  # gradients may be asked for
    layer.requires_grad_(False)
    assert layer.weight is kept
    layer.train()
    assert layer.weight is not layer.weight


def written_by_an_optimizer(layer):
    layer.riem.weight.values.grad = torch.ones_like(layer.riem.weight.values)
    torch.optim.SGD(layer.parameters(), lr=0.1).step()


def written_through_data(layer):
    layer.riem.weight.values.data.mul_(2)
    layer.eval()


def loaded(layer):
    other = RieMLinear(32, 32, representation='bilinear', ratio=0.5)
    layer.load_state_dict(other.state_dict())


def loaded_in_another_size(layer):
    layer.load_state_dict(RieMLinear(32, 32, representation='sigmoid', ratio=0.8).state_dict())


def written_to_the_state_dict(layer):
    layer.state_dict()['riem.weight.q'].mul_(2)


@pytest.mark.parametrize(
    'change',
    [
        written_by_an_optimizer,
        written_through_data,
        written_to_the_state_dict,
        loaded,
        loaded_in_another_size,
        lambda layer: layer.double(),
    ],
)
def test_changed_states_give_another_weight(change):
    layer = RieMLinear(32, 32, representation='bilinear', ratio=0.5).eval()
    with torch.no_grad():
        before = layer.weight
        copied = copy.deepcopy(layer)
    change(layer)
    with torch.no_grad():
        assert layer.weight.dtype != before.dtype or not torch.equal(layer.weight, before)
        fresh = RieMLinear(32, 32)
        fresh.load_state_dict(layer.state_dict())
        assert torch.equal(layer.weight, fresh.weight.to(layer.weight.dtype))
        assert torch.equal(copied.weight, before)


def test_writing_to_a_kept_weight_does_not_stick():
    layer = RieMLinear(32, 32, representation='bilinear').eval()
    with torch.no_grad():
        before = layer.weight.clone()
        layer.weight.zero_()
        assert torch.equal(layer.weight, before)


# ---- precision, devices, copies ----


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
def test_states_keep_their_precision(dtype):
    layer = RieMLinear(32, 64, representation='sigmoid', ratio=0.5)
    weight = layer.weight.detach()
    layer.to(dtype)
    assert layer.weight.dtype == layer.bias.dtype == dtype and layer.riem.weight.values.dtype == torch.float32
    assert layer(torch.zeros(1, 32, dtype=dtype)).dtype == dtype
    assert torch.equal(layer.weight, weight.to(dtype))
    assert torch.equal(layer.float().weight, weight)


def test_autocast_leaves_the_regeneration_alone():
    layer = RieMLinear(32, 64, representation='bilinear', ratio=0.5)
    expected = layer.weight.detach()
    with torch.autocast('cpu', torch.bfloat16):
        assert torch.equal(layer.weight, expected)
        out = layer(torch.ones(1, 32))
    assert out.dtype == torch.bfloat16
    out.float().sum().backward()
    assert layer.riem.weight.values.grad.abs().sum() > 0


def test_moving():
    net = live_net().to('meta')
    assert {parameter.device.type for parameter in net.parameters()} == {'meta'}
    assert net.to_empty(device='cpu').head.weight.shape == (32, 24)


@pytest.mark.parametrize('copied', [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))])
def test_copies(copied):
    net = live_net().eval()
    size = len(pickle.dumps(net))
    with torch.no_grad():
        before = net(inputs())
        assert len(pickle.dumps(net)) == size  # without the kept weights
        other = copied(net)
        assert [type(module) for module in other.modules()] == [type(module) for module in net.modules()]
        assert torch.equal(other(inputs()), before)
        for parameter in net.parameters():
            parameter.zero_()
        assert torch.equal(other(inputs()), before)


def test_live_classes():
    assert live_class(nn.Linear) is RieMLinear
    embedding = live_class(nn.Embedding)
    assert live_class(nn.Embedding) is embedding is live_class(embedding)
    assert embedding.__bases__ == (LiveModule, nn.Embedding)


# ---- initialising ----


@pytest.mark.parametrize('representation', REPRESENTATIONS)
def test_initialisers_reach_the_states(representation):
    net = live_net(representation=representation)
    untouched = net.grouped.weight.detach()
    with writable_weights(net):
        nn.init.normal_(net.conv.weight, 0.5, 0.01)
        net.up.weight.data.fill_(0.0)
        with writable_weights(net):
            nn.init.normal_(net.head.weight, 0, 3)
        assert net.head.weight.std() > 2
        assert net.state_dict()['conv.weight'].shape == (24, 8, 3, 3)
    assert 'conv.weight' not in net.state_dict()
    torch.testing.assert_close(net.conv.weight.std().item(), 0.01, rtol=0.05, atol=0)
    torch.testing.assert_close(net.head.weight.std().item(), 3.0, rtol=0.2, atol=0)
    assert torch.equal(net.grouped.weight, untouched)
    if representation == 'sigmoid':  # the others have no offset
        assert 0.45 < float(net.conv.weight.mean()) < 0.55
    assert 0 < float(net.up.weight.std()) < 1e-5
    net(inputs()).sum().backward()
    assert net.up.riem.weight.values.grad.abs().max() > 0


def test_a_weight_of_zeros_can_be_initialised_later():
    layer = nn.Linear(32, 32)
    nn.init.zeros_(layer.weight)
    make_live(layer, representation='bilinear', ratio=0.5)
    with writable_weights(layer):
        nn.init.normal_(layer.weight, std=0.02)
    torch.testing.assert_close(layer.weight.std().item(), 0.02, rtol=0.1, atol=0)


def test_states_that_are_loaded_among_initialisers_stay(archive):
    net = live_net()
    with writable_weights(net):
        nn.init.normal_(net.head.weight)
        net.load_state_dict(archive.decode())
    state_dict = net.state_dict()
    for name, value in next(r for r in archive.weights if r.view.name == 'head.weight').encoded.states().items():
        assert torch.equal(state_dict[f'head.riem.weight.{name}'], value)


def test_a_weight_held_dense_takes_what_is_written():
    layer = RieMLinear(32, 32, ratio=0.01)
    with writable_weights(layer):
        layer.weight.fill_(0.25)
    assert torch.equal(layer.weight, torch.full((32, 32), 0.25))


def test_assigning_a_weight_holds_it_dense():
    """As mmcv does where it fuses a convolution with its norm."""
    layer = RieMConv2d(16, 16, 3, representation='bilinear', bias=False)
    fused = nn.Parameter(layer.weight.detach() * 2)
    layer.weight = fused
    layer.bias = nn.Parameter(torch.ones(16))
    x = torch.randn(1, 16, 5, 5)
    torch.testing.assert_close(layer(x), F.conv2d(x, fused, torch.ones(16)))
    assert sorted(layer.state_dict()) == ['bias', 'riem.weight.dense']


# ---- layers and options ----


def test_layers_take_the_arguments_of_the_ordinary_ones():
    conv = seeded(lambda: RieMConv2d(16, 64, 3, 2, padding=1, groups=2, representation='bilinear', ratio=0.4))
    assert conv(torch.zeros(1, 16, 9, 9)).shape == (1, 64, 5, 5)
    assert conv.weight.shape == (64, 8, 3, 3)
    torch.testing.assert_close(conv.weight.std().item(), (2 / (64 * 9)) ** 0.5, rtol=0.05, atol=0)
    fitter = get_representation('bilinear').fitter_with(state_bits=8)
    rank = fitter.configure((64, 72), 32 * 0.4 * 64 * 72).rank
    eight = RieMConv2d(16, 64, 3, groups=2, representation='bilinear', ratio=0.4, state_bits=8)
    assert eight.state_dict()['riem.weight.q'].shape == (64, rank)
    assert 'weight' in RieMConv2d(3, 4, 3).state_dict()  # too small to bother


def test_shared_parameters_share_their_states():
    net = nn.ModuleDict(dict(one=nn.Linear(32, 32), two=nn.Linear(32, 32), three=nn.Linear(32, 64)))
    net['two'].weight = net['one'].weight
    net['four'] = net['three']
    assert make_live(net, representation='bilinear', ratio=0.5) == ['one.weight', 'three.weight']
    assert net['one'].riem.weight is net['two'].riem.weight
    assert torch.equal(net['two'].weight, net['one'].weight) and net['four'] is net['three']
    other = copy.deepcopy(net)
    assert other['one'].riem.weight is other['two'].riem.weight
    other.load_state_dict(net.state_dict())


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(representation='svd'), "'svd' is not known"),
        (dict(ratio=0), 'ratio: expected'),
        (dict(ratio=1.5), 'ratio: expected'),
        (dict(ratio=0.5, bits=2), 'ratio, bits: expected one of them'),
        (dict(bits=33), 'bits: expected a number above 0'),
        (dict(effort=0), 'effort: expected'),
        (dict(integers='thawed'), 'integers: expected one of frozen, straight_through'),
        (dict(state_bits=9), 'state_bits: expected 0'),
        (dict(include=['neck.*']), 'matches none'),
        (dict(exclude=['neck.*']), 'matches none'),
    ],
)
def test_wrong_options(options, message):
    net = Net()
    with pytest.raises(RiemError, match=message):
        make_live(net, **options)
    assert not any(isinstance(module, LiveModule) for module in net.modules())


# ---- distributed ----


@pytest.fixture
def one_process(tmp_path):
    torch.distributed.init_process_group('gloo', init_method=f'file://{tmp_path}/store', rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def test_distributed_training_needs_the_sizes_first(archive, one_process):
    wrapped = nn.parallel.DistributedDataParallel(live_net())
    wrapped.module.load_state_dict(archive.decode())
    with torch.no_grad():
        wrapped(inputs())
    with pytest.raises(RiemError, match=r'^weight .*distributed training.*riem=dict\(checkpoint='):
        wrapped(inputs())
    net = live_net(seed=7)
    net.load_state_dict(archive.decode())
    wrapped = nn.parallel.DistributedDataParallel(net)
    wrapped.module.load_state_dict(archive.decode())
    wrapped(inputs()).sum().backward()
    assert all(parameter.grad is not None for parameter in net.parameters())


def test_tensors_that_went_through_a_pth_file_have_no_states(archive):
    file = io.BytesIO()
    torch.save(archive.decode(), file)
    loaded = torch.load(io.BytesIO(file.getvalue()), weights_only=True)
    assert all(torch.equal(loaded[key], tensor) for key, tensor in archive.decode().items())
    assert find_unfitted(live_net(), loaded) and not find_unfitted(live_net(), archive.decode())


# ---- back to weights ----


@pytest.mark.parametrize('representation', REPRESENTATIONS)
def test_dense_again(representation):
    net, plain = live_net(representation=representation), seeded(Net)
    expected = net.eval()(inputs()).detach()
    kinds = [type(module) for module in plain.modules()]
    assert list(make_dense(net)) == WEIGHTS
    assert [type(module) for module in net.modules()] == kinds
    assert set(net.state_dict()) == set(plain.state_dict())
    torch.testing.assert_close(net(inputs()), expected)


@pytest.mark.parametrize('representation', REPRESENTATIONS)
def test_trained_states_are_encoded(representation):
    """The weight that a file gives back is about the one that was trained."""
    net = live_net(representation=representation, state_bits=0 if representation == 'lattice' else 8)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(1 + 0.02 * torch.randn(parameter.shape))
    for name, states in make_dense(net).items():
        encoded = states.encoded()
        weight = states.view.to_matrix(net.get_parameter(name)).detach()
        assert (encoded.decode() - weight).norm() < 0.03 * weight.norm()
        again = type(encoded).from_payload(encoded.shape, encoded.settings, encoded.to_payload())
        assert torch.equal(again.decode(), encoded.decode())
