"""Norms and biases trained on images until the features are those of the original, and nothing else."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from mmriem.core.correction import tuning
from mmriem.core.correction.recalibration import recalibrate
from mmriem.core.correction.tuning import tune
from mmriem.core.errors import RiemError
from mmriem.core.execution.tasks import one_thread
from mmriem.core.file.manifest import Source
from mmriem.core.images.probe import ImageProbe
from mmriem.core.pipeline.compress import compress
from mmriem.core.pipeline.settings import Settings

SOURCE = Source('net.pth', '0' * 64)
LAYERS = ('two', 'three', 'fc')
VECTORS = ('one.bias', 'norm.weight', 'norm.bias', 'again.weight', 'again.bias', 'three.bias', 'fc.bias')


def images(count, seed):
    """Smooth ones, as unlike noise as real ones are."""
    small = torch.randn(count, 3, 5, 5, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(small, size=12, mode='bilinear', align_corners=True)


TRAINING, OTHERS, UNSEEN = images(48, 1), images(16, 2), images(64, 3)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.one = nn.Conv2d(3, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.two = nn.Conv2d(16, 16, 3, padding=1, bias=False)
        self.again = nn.BatchNorm2d(16)
        self.three = nn.Conv2d(16, 24, 3, stride=2)
        self.fc = nn.Linear(24, 5)
        self.with_cp = False

    def forward(self, x):
        x = F.relu(self.norm(self.one(x)))
        if self.with_cp and x.requires_grad:
            x = checkpoint(self._middle, x, use_reentrant=False)
        else:
            x = self._middle(x)
        return self.fc(F.relu(self.three(x)).mean((2, 3)))

    def _middle(self, x):
        return F.relu(x + self.again(self.two(x)))


def net(kind=Net):
    torch.manual_seed(0)
    made = kind()
    made.train()
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.dim() == 1:  # fresh norms are constants
                parameter += 0.2 * torch.randn(parameter.shape)
        for _ in range(30):
            made(images(32, 9))  # statistics that suit the images
    return made.eval()


def perturbed(model, size=0.3):
    changed = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in changed.parameters():
            if parameter.dim() > 1:
                parameter += size * parameter.std() * torch.randn(parameter.shape, generator=generator)
    return changed


def error(model, reference):
    with torch.no_grad():
        return float(F.mse_loss(model(UNSEEN), reference(UNSEEN)) / reference(UNSEEN).var())


def tuned(model, reference, steps=200, vectors=VECTORS, layers=LAYERS, batch=12, **options):
    model = copy.deepcopy(model)
    with one_thread():
        result = tune(model, reference, layers, vectors, ImageProbe(TRAINING, batch), steps, **options)
    return model, result


@pytest.fixture(scope='module')
def reference():
    return net()


@pytest.fixture(scope='module')
def recalibrated(reference):
    model = perturbed(reference)
    recalibrate(model, reference, ImageProbe(OTHERS))
    return model


def assert_same(left, right):
    for key, values in left.state_dict().items():
        assert torch.equal(values, right.state_dict()[key])


@pytest.fixture
def compared(monkeypatch):
    """Shapes of what is compared."""
    shapes, compare = [], tuning._relative_error
    monkeypatch.setattr(
        tuning, '_relative_error', lambda values, other: shapes.append(tuple(values.shape)) or compare(values, other)
    )
    return shapes


def test_the_error_on_images_that_were_not_seen_falls_below_that_of_recalibration(reference, recalibrated):
    model, result = tuned(recalibrated, reference)
    assert result.kept and result.after < 0.95 * result.before
    assert error(model, reference) < 0.9 * error(recalibrated, reference)


def test_nothing_but_the_vectors_changes(reference, recalibrated):
    model, _ = tuned(recalibrated, reference, vectors=('norm.bias', 'fc.bias'))
    changed = {
        key for key, values in model.state_dict().items() if not torch.equal(values, recalibrated.state_dict()[key])
    }
    assert changed == {'norm.bias', 'fc.bias'}
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_the_original_beside_gives_the_same_bits(reference, recalibrated):
    alone, beside = (tuned(recalibrated, reference, steps=9, threads=threads)[0] for threads in (1, 3))
    assert_same(alone, beside)


@pytest.mark.parametrize('rate', [30.0, 1e30])
def test_what_is_not_better_is_not_kept(rate, reference, recalibrated, monkeypatch):
    monkeypatch.setattr(tuning, 'RATE', rate)
    model, result = tuned(recalibrated, reference, steps=5)
    assert not result.kept and not result.after < result.before
    assert_same(model, recalibrated)


def test_a_network_that_is_the_original_stays_what_it_is(reference):
    model, result = tuned(reference, reference, steps=5)
    assert result.before == 0 and not result.kept
    assert error(model, reference) == 0


def test_checkpointed_parts_are_compared_once(reference, recalibrated):
    model = copy.deepcopy(recalibrated)
    model.with_cp = True
    assert_same(tuned(model, reference, steps=5)[0], tuned(recalibrated, reference, steps=5)[0])


class TwoStages(Net):
    """Looks at the patches of highest energy: others in a compressed network than in the original."""

    def __init__(self):
        super().__init__()
        self.patches = nn.Linear(16, 8)

    def forward(self, x):
        x = F.relu(self.norm(self.one(x)))
        x = F.relu(self.again(self.two(x)))
        every = x.flatten(2).transpose(1, 2)  # (images, positions, channels)
        best = every.square().sum(2).topk(3).indices
        chosen = every.gather(1, best[..., None].expand(-1, -1, 16)).flatten(0, 1)
        return self.fc(F.relu(self.three(x)).mean((2, 3))), self.patches(chosen)


def test_what_does_not_count_the_images_is_not_compared(compared):
    reference = net(TwoStages)
    model, result = tuned(perturbed(reference), reference, 4, (*VECTORS, 'patches.bias'), (*LAYERS, 'patches'), 12)
    assert {shape[0] for shape in compared} == {12} and result.kept
    assert torch.equal(model.patches.bias, reference.patches.bias)


class Shared(nn.Module):
    """A head on two levels of a pyramid, and a layer that is given its input by name."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.head = nn.Conv2d(8, 8, 3, padding=1)
        self.last = nn.Conv2d(8, 4, 1)

    def forward(self, x):
        x = F.relu(self.stem(x))
        levels = [F.relu(self.head(level)) for level in (x, F.avg_pool2d(x, 2))]
        return [self.last(input=level) for level in levels]


def test_each_call_of_a_layer_is_compared_with_the_same_call(compared):
    reference = net(Shared)
    _, result = tuned(
        perturbed(reference), reference, 3, ('stem.bias', 'head.bias', 'last.bias'), ('stem', 'head', 'last')
    )
    # the input of the stem, the head on both levels, two outputs
    expected = [(12, 3, 12, 12), (12, 8, 12, 12), (12, 8, 6, 6), (12, 4, 12, 12), (12, 4, 6, 6)]
    assert sorted(set(compared)) == sorted(expected)
    assert result.kept


class Transposed(Shared):
    """Gives its outputs with the images last."""

    def forward(self, x):
        return self.last(F.relu(self.head(F.relu(self.stem(x)))))[:, 0].movedim(0, -1)


@pytest.mark.parametrize('kind, vectors', [(Transposed, ('last.bias',)), (TwoStages, ('patches.bias',))])
def test_something_that_is_compared_must_depend_on_what_is_trained(kind, vectors):
    reference = net(kind)
    with pytest.raises(RiemError, match='number of images'):
        tuned(perturbed(reference), reference, 3, vectors, ('stem', 'last'), batch=8)


# ---- as part of a compression


def probe(others=True):
    made = (lambda steps: ImageProbe(TRAINING, 12)) if others else None
    return ImageProbe(OTHERS, 8, {'kind': 'smooth'}, made)


def compressed(model, steps, bits=2.5, **options):
    settings = Settings.of(bits=bits, min_numel=100, tuning=steps, **options)
    return compress(model, settings, probe=probe(), dataset_meta={}, source=SOURCE)


def with_weights(compressed):
    model = net()
    model.load_state_dict(compressed.archive.decode())
    return model


def test_a_compressed_network_is_tuned_within_its_budget(reference):
    plain, better = compressed(reference, 0), compressed(reference, 200)
    assert better.report['totals']['bits_per_weight'] <= 2.5
    errors = [
        [error(with_weights(compressed(reference, steps, bits)), reference) for steps in (0, 200)]
        for bits in (2.4, 2.6, 2.8, 3.0)  # at a single one rounding may have luck
    ]
    before, after = (sum(values) for values in zip(*errors))
    assert after < 0.9 * before
    told = better.report['totals']['tuning']
    assert told['kept'] and told['after'] < told['before'] and better.report['settings']['tuning'] == 200
    assert plain.report['totals']['tuning'] is None and 'tune' not in plain.report['totals']['stages']
    assert better.report['totals']['stages']['tune'] > 0


def test_tuning_goes_without_recalibration(reference):
    decoded = compressed(reference, 30, recalibration=False).archive.decode()
    original = reference.state_dict()
    for key in ('again.running_mean', 'again.running_var'):  # rounded by up to 2 and 4 percent
        assert torch.allclose(decoded[key], original[key], rtol=0.05, atol=0.02)
    moved = (decoded['again.weight'] - original['again.weight']).abs().max()
    assert moved > 0.01


def test_the_file_does_not_depend_on_threads(reference):
    files = []
    for threads in (1, 2):
        settings = Settings.of(bits=3.0, min_numel=100, tuning=10)
        made = compress(reference, settings, probe=probe(), dataset_meta={}, source=SOURCE, threads=threads)
        files.append(made.archive.to_bytes())
    assert files[0] == files[1]


def test_progress_goes_from_start_to_end(reference):
    seen = []
    compress(
        reference,
        Settings.of(bits=3.0, min_numel=100, tuning=10),
        probe=probe(),
        dataset_meta={},
        source=SOURCE,
        on_progress=lambda share, name: seen.append((share, name)),
    )
    assert seen == sorted(seen, key=lambda told: told[0]) and seen[-1][0] == pytest.approx(1)
    assert len({share for share, name in seen if name == 'norms and biases'}) >= 11


@pytest.mark.parametrize(
    'exclude, steps, message', [(('*.bias', '*norm*', 'again*'), 5, 'norms or biases'), ((), -1, 'tuning')]
)
def test_there_must_be_something_to_tune(exclude, steps, message, reference):
    with pytest.raises(RiemError, match=message):
        compressed(reference, steps, exclude=exclude)


def test_without_images_there_is_nothing_to_tune_on(reference):
    with pytest.raises(RiemError, match='tuning: expected images'):
        compress(reference, Settings.of(bits=3.0, min_numel=100, tuning=5), dataset_meta={}, source=SOURCE)


@pytest.mark.parametrize(
    'settings, pixels, steps',
    [
        ({}, 1 << 15, 2),
        ({}, (1 << 15) + 1, 0),
        ({'bits': 3.0}, 144, 0),
        ({'tuning': 3}, 1 << 20, 3),
        ({'tuning': 0}, 144, 0),
        ({'exclude': ('*bias', '*norm*', 'again*')}, 144, 0),
        ({'representation': 'bilinear'}, 144, 0),
    ],
)
def test_steps_by_default(settings, pixels, steps, reference, monkeypatch):
    monkeypatch.setattr('mmriem.core.pipeline.compress.DEFAULT_TUNING', 2)
    images = probe()
    images.pixels = pixels
    made = compress(reference, Settings.of(min_numel=100, **settings), probe=images, dataset_meta={}, source=SOURCE)
    assert made.report['settings']['tuning'] == made.archive.settings['tuning'] == steps
    assert (made.report['totals']['tuning'] is None) == (steps == 0)


def test_the_same_images_serve_where_there_are_no_others(reference):
    assert probe(others=False).others(5).images == len(OTHERS) and probe().others(5).images == len(TRAINING)
