"""Operations counted against closed forms."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import nn

from mmriem.core import get_representation
from mmriem.core.file.archive import WeightRecord
from mmriem.core.live.complexity import bops, complexity, count_macs, flops
from mmriem.core.representations.base import Work
from mmriem.core.weights.views import find_weights


class Net(nn.Module):
    """Each kind of product, one layer used twice, one not at all."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 8, 3, groups=2)
        self.up = nn.ConvTranspose2d(8, 6, 2, stride=2)
        self.tokens = nn.Linear(6, 16)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.shared = nn.Linear(16, 16)
        self.unused = nn.Linear(16, 64)

    def forward(self, x):
        x = self.tokens(self.up(self.conv(x)).flatten(2).transpose(1, 2))
        return self.shared(self.shared(self.attention(x, x, x)[0]))


def encoded(name, shape, **options):
    fitter = get_representation(name).fitter_with(effort=0.01, **options)
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    return fitter.fit(weight, fitter.configure(shape, 6.0 * weight.numel()))


def costs_of(encoded):
    return get_representation(encoded.name).costs


def test_multiply_adds_of_each_weight():
    net = Net().eval()
    tokens = 12 * 12
    expected = {
        'conv.weight': 8 * 2 * 9 * 6 * 6,
        'up.weight': 8 * 6 * 4 * 6 * 6,
        'tokens.weight': tokens * 6 * 16,
        'attention.in_proj_weight': tokens * 16 * 48,
        'attention.out_proj.weight': tokens * 16 * 16,
        'shared.weight': 2 * tokens * 16 * 16,
        'unused.weight': 0,
    }
    for count in (1, 3):  # products in blocks of a batch, and attention's fast path
        counted = count_macs(net, lambda count=count: net(torch.zeros(count, 4, 8, 8)))
        assert counted.weights == {name: count * macs for name, macs in expected.items()}
        assert counted.others == count * 2 * tokens * tokens * 16
    assert torch.backends.cuda.flash_sdp_enabled()  # as it was before


def test_work_of_the_representations():
    low_rank = encoded('bilinear', (40, 60), rank=7, state_bits=5)
    assert costs_of(low_rank).regeneration((40, 60), low_rank.settings) == [Work(40 * 60 * 7, (5, 5))]
    assert flops(costs_of(low_rank).product(low_rank, 11, 8)) == 11 * 7 * (40 + 60)
    assert bops(costs_of(low_rank).product(low_rank, 11, 8)) == 11 * 7 * (40 + 60) * 5 * 8
    assert flops(costs_of(low_rank).product(low_rank, 11, 8, grouped=True)) == 40 * 60 * 7 + 11 * 40 * 60

    paper = encoded('sigmoid', (40, 60), dq=6, dmu=2, row_blocks=2, col_blocks=1, state_bits=8)
    states, units = 40 + 2 * 60, 6 * 2
    making = [Work(states * 6 * units, (8, 8)), Work(2 * 40 * 60 * units, (32, 32))]
    assert costs_of(paper).regeneration((40, 60), paper.settings) == making
    assert flops(costs_of(paper).product(paper, 11, 8)) == flops(making) + 11 * 40 * 60

    lattice = encoded('lattice', (40, 60))
    bits = math.ceil(math.log2(int(abs(lattice.codes).max()) + 1)) + 1
    assert costs_of(lattice).product_bits(lattice) == bits
    assert bops(costs_of(lattice).product(lattice, 11, 8)) == 2 * 40 * 60 * 32 * 32 + 11 * 40 * 60 * bits * 8


@pytest.fixture(scope='module')
def report():
    net = nn.Sequential(nn.Conv2d(8, 24, 3, groups=2), nn.Flatten(2), nn.Linear(16, 32), nn.Linear(32, 20)).eval()
    conv, first, _ = find_weights(net, min_numel=1)
    records = [WeightRecord(view, encoded('bilinear', view.matrix_shape, state_bits=8)) for view in (conv, first)]
    return records, complexity(net, lambda: net(torch.zeros(1, 8, 6, 6)), records, activation_bits=8)


def test_the_report_of_a_network(report):
    records, found = report
    json.dumps(found)
    conv, first, last = found['weights']
    assert [entry['representation'] for entry in found['weights']] == ['bilinear', 'bilinear', 'dense']
    assert conv['flops']['dense'] == conv['flops']['product'] == 24 * 4 * 9 * 16
    assert first['bytes'] == records[1].encoded.payload_bits() / 8 and last['bytes'] == 4 * 32 * 20
    (work,) = costs_of(records[0].encoded).regeneration((24, 36), records[0].encoded.settings)
    making, rank = work.count, 24 * 36
    assert conv['flops']['regeneration'] == making and making % rank == 0
    assert conv['flops']['matrix_free'] == making + 24 * 4 * 9 * 16  # grouped
    rank = records[1].encoded.settings.rank
    assert first['flops']['matrix_free'] == 24 * rank * (32 + 16)
    assert first['bops']['matrix_free'] == 24 * rank * (32 + 16) * 8 * 8
    assert last['flops'] == {'dense': 24 * 640, 'regeneration': 0, 'product': 24 * 640, 'matrix_free': 24 * 640}
    assert last['bops']['dense'] == 24 * 640 * 32 * 8


def test_totals_are_sums(report):
    _, found = report
    for key in ('flops', 'bops'):
        for way, total in found['totals'][key].items():
            assert total == sum(entry[key][way] for entry in found['weights'])
    assert found['totals']['bytes'] == sum(entry['bytes'] for entry in found['weights'])
    assert found['not_counted'] == [] and found['totals']['other_flops'] == 0
