"""Representations by name: three that are there, and a fourth that is registered from outside of the package."""

import copy
import pickle
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import nn

from mmriem.core import BILINEAR, LATTICE, SIGMOID, get_representation, representation_names
from mmriem.core.coding.packing import PayloadReader, float_bytes, pack, packed_bytes
from mmriem.core.errors import RiemError
from mmriem.core.file import reading, writing
from mmriem.core.file.manifest import Source
from mmriem.core.live.complexity import complexity
from mmriem.core.live.convert import make_dense, make_live
from mmriem.core.pipeline.compress import compress
from mmriem.core.pipeline.reencode import reencode
from mmriem.core.pipeline.settings import Settings
from mmriem.core.representations import registry
from mmriem.core.representations.base import Codec, Costs, Demand, Fitter, LiveStates, Work
from mmriem.core.representations.blocks import EVERYTHING, Block, spans
from mmriem.core.representations.checks import check_weight
from mmriem.core.representations.registry import Representation, register
from mmriem.core.representations.settings import CodecSettings, Key

SOURCE = Source('net.pth', 64 * 'a')


# ---- a fourth representation: uniform levels between the least and the greatest weight of each row


@dataclass(frozen=True)
class RowSettings(CodecSettings):
    representation = 'rows'
    keys: ClassVar = {'level_bits': Key(1, 8)}

    level_bits: int

    def payload_bits(self, shape):
        return 8 * (8 * shape[0] + packed_bytes(shape[0] * shape[1], self.level_bits))


class Rows(Codec):
    name = 'rows'
    settings_type = RowSettings

    def __init__(self, levels, low, step, level_bits):
        self.shape = tuple(levels.shape)
        self.levels, self.low, self.step, self.level_bits = levels, low, step, level_bits

    @property
    def symbols(self):
        return self.levels.numel()

    @property
    def settings(self):
        return RowSettings(self.level_bits)

    def to_payload(self):
        floats = [float_bytes(x, '<f4') for x in (self.low, self.step)]
        return b''.join([*floats, pack(self.levels, self.level_bits)])

    @classmethod
    def demand(cls, shape, settings):
        size = settings.payload_bits(shape) // 8
        return Demand(shape[0] * shape[1], size, size)

    @classmethod
    def from_payload(cls, shape, settings, payload):
        reader = PayloadReader(payload, settings.payload_bits(shape) // 8)
        low, step = (reader.floats('<f4', (shape[0],)) for _ in range(2))
        return cls(reader.integers(settings.level_bits, shape), low, step, settings.level_bits)

    def states(self):
        return {'levels': self.levels.float(), 'low': self.low, 'step': self.step}

    def decode(self):
        return (self.low.double()[:, None] + self.step.double()[:, None] * self.levels.double()).float()


class RowStates(LiveStates):
    state_names = ('levels', 'low', 'step')
    integer_states = ('levels',)

    def from_states(self, states, configuration, kernel_size=1):
        rounded = {**states, 'levels': states['levels'].round()}
        return RowFitter().fit(self.regenerate(rounded), configuration or RowSettings(8))

    def regenerate(self, states):
        return states['low'][:, None] + states['step'][:, None] * states['levels']

    def random_states(self, shape, configuration):
        levels = torch.randint(2**configuration.level_bits, shape).float()
        return {'levels': levels, 'low': torch.full(shape[:1], -1.0), 'step': torch.ones(shape[0])}

    def scaled_states(self, states, gain, shift):
        return {**states, 'low': gain * states['low'] + shift, 'step': gain * states['step']}

    def packed_states(self, encoded):
        return self.pack_states(encoded.states(), None)

    def pack_states(self, states, configuration):
        return {**states, 'levels': states['levels'].to(torch.uint8)}

    def rows(self, states):
        return states['levels'].shape[0]

    def blocks(self, states, most, kernel_size=1):
        for part in spans(0, self.rows(states), max(1, most // states['levels'].shape[1])):
            yield Block(EVERYTHING, part, {name: states[name][part] for name in self.state_names})


class RowCosts(Costs):
    def regeneration(self, shape, settings):
        return [Work(shape[0] * shape[1], (32, settings.level_bits))]


@dataclass(frozen=True)
class RowFitter(Fitter):
    name: ClassVar = 'rows'

    state_bits: int = 0

    def configure(self, shape, bits, kernel_size=1, smaller=None):
        for level_bits in [self.state_bits] if self.state_bits else range(8, 0, -1):
            settings = RowSettings(level_bits)
            if settings.payload_bits(shape) <= bits:
                return settings
        return None

    def planned_bits(self, shape, configuration):
        return configuration.payload_bits(shape)

    def fit(self, weight, configuration, *, input_metric=None, output_weights=None, progress=None):
        check_weight(weight, input_metric, output_weights)
        low, high = weight.detach().float().aminmax(dim=1)
        step = ((high - low) / (2**configuration.level_bits - 1)).clamp_min(1e-20)
        levels = ((weight - low[:, None]) / step[:, None]).round().to(torch.uint8)
        return Rows(levels.cpu(), low.cpu(), step.cpu(), configuration.level_bits)


@pytest.fixture
def rows(monkeypatch):
    monkeypatch.setattr(registry, '_REPRESENTATIONS', dict(registry._REPRESENTATIONS))
    return register(Representation(Rows, RowStates(), RowCosts(), RowFitter))


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(4, 24, 3), nn.ReLU(), nn.Flatten(), nn.Linear(24 * 36, 20))


def images(count=16):
    return torch.randn(count, 4, 8, 8, generator=torch.Generator().manual_seed(1))


def test_it_is_compressed_written_read_and_loaded(rows, tmp_path):
    original = net().eval()
    settings = Settings.of(representation='rows', bits=8.0, min_numel=64)
    made = compress(original, settings, dataset_meta={}, source=SOURCE)
    path = tmp_path / 'net.riem'
    writing.write(path, made.archive)
    archive = reading.read(path)
    assert {record.encoded.name for record in archive.weights} == {'rows'}
    assert path.stat().st_size <= made.report['totals']['represented_elements'] * 8 / 8
    loaded = net().eval()
    loaded.load_state_dict(archive.decode())
    for weight, decoded in ((x[3].weight, y[3].weight) for x, y in [(original, loaded)]):
        spread = (weight.amax(1) - weight.amin(1)) / 2**7
        assert ((weight - decoded).abs() <= spread[:, None]).all() and not torch.equal(weight, decoded)


@pytest.mark.parametrize('materialize', [True, False])
@pytest.mark.parametrize(('integers', 'rate'), [('frozen', 3e-5), ('straight_through', 1.0)])
def test_it_lives_and_trains_and_is_written_again(rows, tmp_path, materialize, integers, rate):
    settings = Settings.of(representation='rows', bits=8.0, min_numel=64)
    decoded = compress(net(), settings, dataset_meta={}, source=SOURCE).archive.decode()
    plain, live = net().eval(), net()
    plain.load_state_dict(decoded)
    make_live(live, representation='rows', bits=12.0, integers=integers, materialize=materialize)
    live.load_state_dict(decoded)
    torch.testing.assert_close(live.eval()(images()), plain(images()), rtol=1e-4, atol=1e-4)

    states = [parameter for name, parameter in live.train().named_parameters() if name.endswith('values')]
    optimiser = torch.optim.Adam(states, lr=rate)
    losses = []
    for _ in range(20):
        loss = live(images()).square().mean()
        losses.append(float(loss.detach()))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert losses[-1] < 0.8 * losses[0]

    trained = live.eval()(images()).detach()
    kept = {name: states.encoded() for name, states in make_dense(live).items()}
    again = reencode(live, kept, dataset_meta={}, source=SOURCE)
    writing.write(tmp_path / 'trained.riem', again.archive)
    plain.load_state_dict(reading.read(tmp_path / 'trained.riem').decode())
    assert (plain(images()) - trained).norm() < 0.1 * trained.norm()  # trained levels are rounded to 8 bits anew
    for mine, its in ((plain[0].weight, live[0].weight), (plain[3].weight, live[3].weight)):
        rows = its.detach().flatten(1)
        step = (rows.amax(1, keepdim=True) - rows.amin(1, keepdim=True)) / 255
        assert ((mine.detach().flatten(1) - rows).abs() <= 0.51 * step).all()


def test_ordinary_weights_are_fitted_and_fresh_ones_drawn(rows):
    live, plain = net(), net()
    make_live(live, representation='rows', bits=8.0)
    spreads = [float(module.weight.detach().std()) for module in (live[0], live[3])]
    assert spreads == pytest.approx([float(module.weight.std()) for module in (plain[0], plain[3])], rel=0.05)
    live.load_state_dict(plain.state_dict())
    assert (live[3].weight - plain[3].weight).abs().max() < 0.01 * plain[3].weight.abs().max()


def test_its_costs_are_in_the_report_of_a_network(rows):
    model = net().eval()
    settings = Settings.of(representation='rows', bits=8.0, min_numel=64)
    archive = compress(model, settings, dataset_meta={}, source=SOURCE).archive
    found = complexity(model, lambda: model(images(1)), archive.weights, activation_bits=8)
    entry = next(entry for entry in found['weights'] if entry['name'] == '3.weight')
    assert entry['representation'] == 'rows' and entry['flops']['regeneration'] == 20 * 24 * 36


# ---- the registry


def test_the_names_are_sorted_and_what_is_not_known_is_refused():
    assert representation_names() == ['bilinear', 'lattice', 'sigmoid']
    assert [get_representation(name) for name in representation_names()] == [BILINEAR, LATTICE, SIGMOID]
    with pytest.raises(RiemError, match="'nothing' is not known, expected one of bilinear, lattice, sigmoid"):
        get_representation('nothing')


def test_names_and_state_names_are_taken_once(rows):
    with pytest.raises(RiemError, match="'rows': expected a name that is not taken"):
        register(Representation(Rows, RowStates(), RowCosts(), RowFitter))

    class Twin(Rows):
        name = 'twin'

    with pytest.raises(RiemError, match="'twin': expected other state names than those of 'rows', found levels"):
        register(Representation(Twin, RowStates(), RowCosts(), RowFitter))


def test_copies_are_the_same_one():
    for representation in (BILINEAR, LATTICE, SIGMOID):
        assert copy.deepcopy(representation) is representation
        assert pickle.loads(pickle.dumps(representation)) is representation


def test_options_go_to_those_who_have_them():
    given = dict(state_bits=8, seed=3, effort=0.5, trellis=False)
    assert vars(SIGMOID.fitter_with(**given)) == {**vars(SIGMOID.fitter()), 'state_bits': 8, 'seed': 3, 'effort': 0.5}
    assert vars(BILINEAR.fitter_with(**given)) == {'state_bits': 8, 'rank': 0}
    assert vars(LATTICE.fitter_with(**given)) == {} and vars(LATTICE.stepper_with(**given)) == {'trellis': False}
    assert BILINEAR.stepper_with(**given) is None and LATTICE.options == {'trellis'}
