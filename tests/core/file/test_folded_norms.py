"""Statistics of batch norms in a few bits, and weights and biases that make up for it."""

import copy

import pytest
import torch
from torch import nn

from mmriem.core.file.archive import Archive
from mmriem.core.file.folded_norms import NormView, find_norms, rounded_norms
from mmriem.core.file.manifest import Source
from mmriem.core.file.reading import from_bytes
from mmriem.core.file.vectors import NORM_PRECISION, encode, find_vectors, quantise

PRECISION = 40  # errors of weights and biases that do not count


def norm(channels=64, kind=nn.BatchNorm2d, **options):
    torch.manual_seed(0)
    made = kind(channels, **options)
    with torch.no_grad():
        made.weight.uniform_(0.5, 1.5)
        made.bias.normal_(0, 0.5)
        made.running_mean.normal_(0, 2)
        made.running_var.copy_(torch.randn(channels).mul(2).exp())
    return made.eval()


def rounded(model, precision=PRECISION):
    vectors = find_vectors(model)
    return rounded_norms(find_norms(model, vectors), model.state_dict(), vectors, precision)


def with_records(model, records):
    model = copy.deepcopy(model)
    model.load_state_dict({**model.state_dict(), **{key: record.decode() for key, record in records.items()}})
    return model


@pytest.mark.parametrize('eps', [1e-5, 0.5])
def test_the_function_stays_though_the_statistics_are_coarse(eps):
    model = norm(eps=eps)
    coarse = with_records(model, rounded(model))
    x = torch.randn(8, 64, 5, 5) * 3
    with torch.no_grad():
        expected, found = model(x), coarse(x)
    assert float((found - expected).square().mean() / expected.var()) < 1e-5
    assert 0.05 < float((coarse.running_mean - model.running_mean).std() / model.running_mean.std()) < 0.15
    ratio = (coarse.running_var / model.running_var).log2()
    assert 0.1 < float(ratio.abs().max()) <= 0.25 + 1e-6  # half an octave


def test_training_sees_about_the_weights_that_it_had():
    """Weights change as much as the rounding of a standard deviation, biases by a small share of their spread."""
    model = norm()
    coarse = with_records(model, rounded(model))
    assert float((coarse.weight / model.weight).log2().abs().max()) <= 0.125 + 1e-3
    x = torch.randn(16, 64, 5, 5) * model.running_var.sqrt()[:, None, None] + model.running_mean[:, None, None]
    with torch.no_grad():
        expected, found = (side.train()(x) for side in (copy.deepcopy(model), coarse))
    assert float((found - expected).square().mean() / expected.var()) < 0.1


def test_it_takes_fewer_bytes_than_vectors_as_exact():
    model = norm(512)
    vectors = find_vectors(model)
    coarse = rounded(model, NORM_PRECISION).values()
    plain = [quantise(key, model.state_dict()[key], storage) for key, storage in vectors.items()]
    assert len(encode(list(coarse))) < 0.85 * len(encode(plain))

    def error(records):
        x = torch.randn(8, 512, 4, 4, generator=torch.Generator().manual_seed(1)) * 3
        with torch.no_grad():
            expected, found = model(x), with_records(model, {record.layout.name: record for record in records})(x)
        return float((found - expected).square().mean() / expected.var())

    assert error(coarse) < error(plain)


@pytest.mark.parametrize('key', ['weight', 'bias', 'running_mean', 'running_var'])
def test_a_norm_with_a_constant_stays_as_it_is(key):
    model = norm()
    with torch.no_grad():
        getattr(model, key).fill_(1.0)
    assert rounded(model) == {}


def test_only_norms_with_all_four_vectors_of_their_own():
    shared = norm()
    model = nn.Sequential(
        norm(),
        nn.BatchNorm2d(64, affine=False),
        nn.BatchNorm2d(64, track_running_stats=False),
        nn.LayerNorm(64),
        nn.GroupNorm(4, 64),
        nn.InstanceNorm2d(64, affine=True, track_running_stats=True),
        shared,
        nn.Sequential(shared),
        norm(kind=nn.SyncBatchNorm),
        norm(kind=nn.BatchNorm1d),
    )
    found = [view.weight for view in find_norms(model, find_vectors(model))]
    assert found == ['0.weight', '8.weight', '9.weight']
    assert [view.weight for view in find_norms(model, find_vectors(model, exclude=['8.bias']))] == [
        '0.weight',
        '9.weight',
    ]


def test_short_or_broken_vectors_are_left_alone():
    assert rounded(norm(4)) == {}
    broken = norm()
    with torch.no_grad():
        broken.running_var[0] = float('nan')
    assert rounded(broken) == {}


def test_an_archive_holds_the_records_as_they_are():
    model = norm()
    records = rounded(model, NORM_PRECISION)
    archive = Archive.from_state_dict(
        model.state_dict(),
        [],
        dataset_meta={},
        source=Source('a', '0' * 64),
        settings={},
        vectors=find_vectors(model),
        rounded=records,
    )
    decoded = from_bytes(archive.to_bytes()).decode()
    assert records.keys() == {'weight', 'bias', 'running_mean', 'running_var'}
    for key, record in records.items():
        assert torch.equal(decoded[key], record.decode())


def test_views_name_their_keys():
    assert NormView('a', 'b', 'c', 'd', 0.1).keys == ('a', 'b', 'c', 'd')
