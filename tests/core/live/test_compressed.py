"""Networks that hold payloads in place of weights, against dense ones."""

from __future__ import annotations

import copy
import io
import pickle
import threading

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import mmriem
from mmriem.core.errors import RiemError
from mmriem.core.file import reading
from mmriem.core.live import compressed, stored
from mmriem.core.live.compressed import CompressedWeight, make_compressed, undecoded
from mmriem.core.live.convert import make_dense, make_live
from mmriem.core.live.module import HeldStates
from mmriem.core.live.unmade import UnmadeWeight

REPRESENTATIONS = ('bilinear', 'lattice', 'sigmoid')


class Products(nn.Module):
    """Everything that has a weight applied in bands: no product here depends on how rows are divided."""

    def __init__(self):
        super().__init__()
        self.plain = nn.Conv2d(3, 24, 3, padding=1)
        self.strided = nn.Conv2d(24, 40, (3, 2), stride=2, dilation=2, padding_mode='reflect', padding=1)
        self.grouped = nn.Conv2d(40, 60, 3, groups=4, padding='same')
        self.depthwise = nn.Conv2d(60, 120, 3, groups=60)
        self.transposed = nn.ConvTranspose2d(120, 48, 3, stride=2, output_padding=1, groups=2, dilation=2)
        self.norm = nn.BatchNorm2d(48)
        self.linear = nn.Linear(48, 50)

    def forward(self, x):
        for layer in (self.plain, self.strided, self.grouped, self.depthwise, self.transposed):
            x = layer(x).relu()
        return self.linear(self.norm(x).flatten(2).transpose(1, 2))


class Readers(nn.Module):
    """Weights that other code reads: attention, a table, a Conv1d, a functional call, a parameter of the network."""

    def __init__(self):
        super().__init__()
        self.position = nn.Parameter(torch.randn(1, 30, 32))
        self.attention = nn.MultiheadAttention(32, 4, batch_first=True)
        self.other = nn.MultiheadAttention(32, 4, kdim=24, vdim=20, batch_first=True)
        self.table = nn.Embedding(40, 32)
        self.along = nn.Conv1d(32, 32, 3, padding=1)
        self.recurrent = nn.GRU(32, 24, batch_first=True)
        self.linear = nn.Linear(24, 32)

    def forward(self, x):
        x = x + self.position + self.table(torch.arange(30))
        x = x + self.attention(x, x, x)[0]
        x = x + self.other(x, x[..., :24], x[..., :20])[0]
        x = self.along(x.transpose(1, 2)).transpose(1, 2)
        return F.linear(self.recurrent(x)[0], self.linear.weight * 2) @ self.linear.weight


class Heads(nn.Module):
    """A head that is called for several levels, and a weight that two layers share."""

    def __init__(self):
        super().__init__()
        self.body = nn.Conv2d(3, 32, 3, stride=2)
        self.head = nn.Sequential(nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1))
        self.first, self.second = nn.Linear(32, 32), nn.Linear(32, 32)
        self.second.weight = self.first.weight

    def forward(self, x):
        x = self.body(x)
        levels = [self.head(F.max_pool2d(x, 2**level)).mean((2, 3)) for level in range(3)]
        return self.second(self.first(torch.stack(levels)))


INPUTS = {Products: (2, 3, 20, 18), Readers: (2, 30, 32), Heads: (2, 3, 20, 18)}


@pytest.fixture(scope='module')
def file_of(tmp_path_factory):
    """The path of a file of a network, by its class and a representation."""
    found = {}

    def make(network, representation='lattice'):
        if (network, representation) not in found:
            torch.manual_seed(0)
            path = tmp_path_factory.mktemp('file') / 'x.riem'
            options = dict(effort=0.01) if representation == 'sigmoid' else {}
            bits = 3.0 if representation == 'lattice' else 12.0
            how = dict(representation=representation, bits=bits, metric='identity', threads=1, min_numel=64)
            mmriem.save(mmriem.compress(network().eval(), **how, **options), path)
            found[network, representation] = path
        return found[network, representation]

    return make


def both(network, path, **options):
    """The dense one and the compressed one."""
    dense = mmriem.load(network(), path).eval()
    return dense, mmriem.load(network(), path, memory='compressed', **options).eval()


def image(network, seed=1):
    return torch.randn(INPUTS[network], generator=torch.Generator().manual_seed(seed))


def held(network):
    return {name: part for name, part in network.named_modules() if isinstance(part, CompressedWeight)}


@pytest.fixture
def small_bands(monkeypatch):
    monkeypatch.setattr(stored, 'BAND', 500)
    monkeypatch.setattr(CompressedWeight, 'most', 500)


@pytest.mark.parametrize('network', INPUTS)
@pytest.mark.parametrize('representation', REPRESENTATIONS)
@torch.no_grad()
def test_outputs_are_those_of_the_dense_network(file_of, small_bands, network, representation):
    dense, other = both(network, file_of(network, representation))
    for seed in (1, 2, 2):
        x = image(network, seed)
        expected = dense(x)
        torch.testing.assert_close(other(x), expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


@torch.no_grad()
def test_a_weight_that_is_one_band_gives_the_same_bits(file_of):
    dense, other = both(Products, file_of(Products))
    assert torch.equal(other(image(Products)), dense(image(Products)))


@pytest.mark.parametrize('representation', REPRESENTATIONS)
def test_every_weight_of_the_file_is_held_as_its_payload(file_of, representation):
    path = file_of(Readers, representation)
    dense, other = both(Readers, path)
    records = {record.view.name: record for record in reading.read(path).weights}
    names = {name.replace('.riem.', '.').removeprefix('riem.') for name in held(other)}
    assert names == {name for name in records if 'recurrent' not in name} and 'position' in names
    for name, weight in held(other).items():
        record = records[name.replace('.riem.', '.').removeprefix('riem.')]
        payload = record.encoded.to_payload()
        assert weight.encoded().to_payload() == payload and weight.stored.data.numel() < len(payload) + 300
        if representation == 'bilinear':  # a product of floats, summed in another order
            torch.testing.assert_close(weight.made(), record.decode(), rtol=1e-5, atol=1e-5)
        else:
            assert torch.equal(weight.made(), record.decode())
    assert torch.equal(other.recurrent.weight_ih_l0, dense.recurrent.weight_ih_l0)


@torch.no_grad()
def test_no_more_than_a_band_of_a_weight_is_made_at_a_time(file_of, small_bands, monkeypatch):
    dense, other = both(Products, file_of(Products))
    largest = []
    regenerate = stored.Stored.factors

    def counting(self, grouped):
        (factor,) = regenerate(self, grouped)

        def matrix(states):
            made = factor.matrix(states)
            largest.append((made.numel(), made.shape[1]))
            return made

        return (factor._replace(matrix=matrix),)

    monkeypatch.setattr(stored.Stored, 'factors', counting)
    torch.testing.assert_close(other(image(Products)), dense(image(Products)), rtol=1e-5, atol=1e-5)
    assert largest and all(count <= max(500, columns) for count, columns in largest)


@torch.no_grad()
def test_nothing_is_decoded_before_it_is_needed_and_nothing_stays(file_of, monkeypatch):
    opened = counted(monkeypatch)
    torch.set_num_threads(1)
    other = mmriem.load(Heads(), file_of(Heads), memory='compressed').eval()
    assert not opened
    other(image(Heads))
    weights = [weight.stored for weight in held(other).values()]
    assert len(opened) == len(set(map(id, weights))) == 4  # each once, whatever the number of calls
    assert all(weight.decoded.held == 0 for weight in held(other).values())


def counted(monkeypatch):
    """The weights that are decoded from now on."""
    opened, start = [], stored.Stored.open

    def open_(self, **options):
        opened.append(self)
        return start(self, **options)

    monkeypatch.setattr(stored.Stored, 'open', open_)
    return opened


@torch.no_grad()
def test_without_a_cache_each_call_decodes(file_of, monkeypatch):
    opened = counted(monkeypatch)
    dense, other = both(Heads, file_of(Heads), cache=0)
    assert torch.equal(other(image(Heads)), dense(image(Heads))) and len(opened) == 1 + 2 * 3 + 2


def test_a_copy_and_a_pickled_one_run_and_share_nothing(file_of):
    for network in INPUTS:
        _, other = both(network, file_of(network))
        with torch.no_grad():
            for twin in (copy.deepcopy(other), pickle.loads(pickle.dumps(other))):
                assert torch.equal(twin(image(network)), other(image(network)))
                pair = zip(held(twin).values(), held(other).values())
                assert all(one.decoded is not two.decoded and one.stored is not two.stored for one, two in pair)
                assert len({id(weight.decoded) for weight in held(twin).values()}) == 1


def test_the_state_dict_holds_payloads_and_loads_again(file_of):
    dense, other = both(Products, file_of(Products))
    written = io.BytesIO()
    torch.save(other.state_dict(), written)
    written.seek(0)
    tensors = torch.load(written, weights_only=True)
    assert tensors['plain.riem.weight.payload'].dtype == torch.uint8 and 'plain.weight' not in tensors
    fresh = Products().eval()
    make_compressed(fresh, views=[weight.view for weight in held(other).values()])
    fresh.load_state_dict(tensors)
    with torch.no_grad():
        assert torch.equal(fresh(image(Products)), dense(image(Products)))
    del tensors['plain.riem.weight.payload']
    with pytest.raises(RuntimeError, match=r'Missing key.*plain.riem.weight'):
        fresh.load_state_dict(tensors)


def test_a_state_dict_of_something_else_is_refused(file_of):
    other = mmriem.load(Products(), file_of(Products), memory='compressed')
    tensors = other.state_dict()
    for wrong, said in (
        (torch.zeros(40, dtype=torch.uint8), 'expected the bytes of a compressed weight'),
        (torch.zeros(3), 'expected the bytes of a compressed weight'),
        (tensors['linear.riem.weight.payload'][:-9], "weight 'plain.weight': "),
    ):
        with pytest.raises(RuntimeError, match=said):
            other.load_state_dict({**tensors, 'plain.riem.weight.payload': wrong})
            other.eval()(image(Products))
    with pytest.raises(RiemError, match='found that of another checkpoint'):
        other.load_state_dict(Products().state_dict())


def test_it_becomes_dense_again(file_of):
    dense, other = both(Readers, file_of(Readers))
    assert 'position' in make_dense(other)
    assert type(other.linear) is nn.Linear and type(other.attention) is nn.MultiheadAttention
    assert list(other.state_dict()) == list(dense.state_dict())
    assert all(torch.equal(other.state_dict()[key], value) for key, value in dense.state_dict().items())
    assert other.linear.weight.requires_grad


def test_moving_and_other_precisions(file_of):
    dense, other = both(Heads, file_of(Heads))
    x = image(Heads)
    with torch.no_grad():
        assert torch.equal(other.double()(x.double()), dense.double()(x.double()))
        assert other.first.weight.dtype == torch.float64 and other.first.weight.shape == (32, 32)
        low, high = other.to(torch.bfloat16)(x.bfloat16()), dense.to(torch.bfloat16)(x.bfloat16())
        assert torch.equal(low, high) and low.dtype == torch.bfloat16
    assert isinstance(other.to('meta').body.weight, UnmadeWeight) and other.body.weight.device.type == 'meta'
    assert all(weight.stored.data.device.type == 'cpu' for weight in held(other).values())


def test_autocast_is_that_of_a_dense_network(file_of):
    dense, other = both(Products, file_of(Products))
    with torch.no_grad(), torch.autocast('cpu', torch.bfloat16):
        torch.testing.assert_close(other(image(Products)), dense(image(Products)), rtol=1e-2, atol=1e-2)


def test_training_is_refused_and_says_what_to_do(file_of):
    for network in INPUTS:
        _, other = both(network, file_of(network))
        other.train()
        with pytest.raises(RiemError, match=r"memory='compressed' cannot be; call eval\(\) and torch.no_grad"):
            other(image(network))
        with torch.no_grad():
            other(image(network))


def test_gradients_of_inputs_pass_in_eval_mode(file_of):
    gradients = []
    for network in both(Heads, file_of(Heads)):
        x = image(Heads).requires_grad_()
        network(x).square().sum().backward()
        gradients.append(x.grad)
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_threads_may_run_it_at_once(file_of):
    dense, other = both(Heads, file_of(Heads), cache=20000)
    found, errors = {}, []

    def run(seed):
        try:
            with torch.no_grad():
                found[seed] = [other(image(Heads, seed)) for _ in range(5)]
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert all(torch.equal(y, dense(image(Heads, seed))) for seed, ys in found.items() for y in ys)
    assert all(weight.decoded.held == 0 for weight in held(other).values())


@torch.no_grad()
def test_an_error_within_a_run_does_not_outlast_it(file_of):
    dense, other = both(Heads, file_of(Heads))
    with pytest.raises(RuntimeError):
        other(torch.zeros(1, 3, 2, 2))
    assert torch.equal(other(image(Heads)), dense(image(Heads)))
    assert all(weight.decoded.held == 0 for weight in held(other).values())


@torch.no_grad()
def test_decoded_values_are_compared_with_their_hash(file_of):
    other = mmriem.load(Products(), file_of(Products), memory='compressed').eval()
    weight = other.transposed.riem.weight
    about, start = weight.stored._parts
    header = weight.stored.data[:start].numpy().tobytes().replace(about['decoded'].encode(), b'0' * 64)
    data = torch.frombuffer(bytearray(header + weight.stored.data[start:].numpy().tobytes()), dtype=torch.uint8)
    weight.reset({'payload': data})
    with pytest.raises(RiemError, match=r"weight 'transposed.weight': expected the SHA-256"):
        other(image(Products))


def test_a_file_that_is_read_alone_gives_weights_that_are_made_when_read(file_of):
    archive = reading.read(file_of(Products), parse=False)
    tensors, decoded = undecoded(archive), archive.decode()
    assert list(tensors) == list(decoded) and isinstance(tensors['plain.weight'], UnmadeWeight)
    model = Products()
    model.load_state_dict(tensors)
    assert all(torch.equal(model.state_dict()[key], value) for key, value in decoded.items())
    x = image(Products)
    how = dict(bias=decoded['plain.bias'], padding=1)
    assert torch.equal(F.conv2d(x, tensors['plain.weight'], **how), F.conv2d(x, decoded['plain.weight'], **how))


def test_live_modules_take_states_of_it(file_of):
    model = Products()
    names = make_live(model, representation='lattice', exclude=('depthwise.weight',))
    archive = reading.read(file_of(Products), parse=False)
    model.load_state_dict(undecoded(archive))
    encoded = {record.view.name: record.encoded.to_payload() for record in archive.weights}
    for name in names:
        held_states = model.get_submodule(f'{name.removesuffix(".weight")}.riem')
        assert isinstance(held_states, HeldStates) and held_states['weight'].encoded().to_payload() == encoded[name]


def test_before_a_file_is_loaded_weights_are_those_that_there_were(file_of):
    torch.manual_seed(3)
    dense = Heads().eval()
    other = copy.deepcopy(dense)
    assert make_compressed(other, include=('body.*', 'first.*')) == ['body.weight', 'first.weight']
    assert torch.equal(other(image(Heads)), dense(image(Heads)))
    state = other.state_dict()
    assert torch.equal(state['body.riem.weight.dense'], dense.body.weight)
    again = Heads().eval()
    make_compressed(again, include=('body.*', 'first.*'))
    again.load_state_dict(state)
    assert torch.equal(again(image(Heads)), dense(image(Heads)))


def test_what_is_asked_for_is_checked(file_of):
    with pytest.raises(RiemError, match="memory: expected one of dense, compressed, found 'small'"):
        mmriem.load(Heads(), file_of(Heads), memory='small')
    for cache in ('a lot', '32', -1, None, True):
        with pytest.raises(RiemError, match="cache: expected a size such as '32MB'"):
            mmriem.load(Heads(), file_of(Heads), memory='compressed', cache=cache)
    with pytest.raises(RiemError, match=r'config and file do not belong together'):
        mmriem.load(Products(), file_of(Heads), memory='compressed')
    assert compressed.MEMORY == ('dense', 'compressed')
