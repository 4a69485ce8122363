"""Norms and biases that make up for what compression has moved, and nothing else."""

import copy
import threading
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mmriem.core.correction import recalibration
from mmriem.core.correction.recalibration import OBSERVER, observe, recalibrate
from mmriem.core.execution.executor import Executor
from mmriem.core.execution.workers import Workers
from mmriem.core.images.probe import ImageProbe


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def seeded(make, seed=0):
    torch.manual_seed(seed)
    return make().eval()


IMAGES = randn(16, 3, 12, 12, seed=1) * 0.7 + 0.4


class Net(nn.Module):
    """Convolutions with norms, one of them without a bias, and a classifier."""

    def __init__(self):
        super().__init__()
        self.one = nn.Conv2d(3, 16, 3, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.two = nn.Conv2d(16, 12, 3)
        self.again = nn.BatchNorm2d(12)
        self.fc = nn.Linear(12, 5)
        with torch.no_grad():
            for norm in (self.norm, self.again):
                norm.weight.copy_(torch.rand_like(norm.weight) + 0.5)
                norm.bias.normal_()
                norm.running_mean.normal_(0, 0.2)
                norm.running_var.copy_(torch.rand_like(norm.running_var) + 0.2)

    def forward(self, x):
        x = F.relu(self.norm(self.one(x)))
        return self.fc(F.relu(self.again(self.two(x))).mean((2, 3)))


class Tokens(nn.Module):
    """A network without any BatchNorm."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Conv2d(3, 16, 4, 4)
        self.norm = nn.LayerNorm(16)
        self.one = nn.Linear(16, 24)
        self.groups = nn.GroupNorm(3, 24)
        self.two = nn.Linear(24, 16, bias=False)
        self.head = nn.Linear(16, 5)

    def forward(self, x):
        x = self.embed(x).flatten(2).transpose(1, 2)
        x = F.relu(self.one(self.norm(x)))
        x = self.groups(x.transpose(1, 2)).transpose(1, 2)
        return self.head(self.two(x).mean(1))


def perturbed(model, size=0.25, gain=1.0):
    """A copy whose weights with two or more dimensions have errors of that relative size."""
    changed = copy.deepcopy(model)
    with torch.no_grad():
        for number, parameter in enumerate(changed.parameters()):
            if parameter.dim() > 1:
                error = randn(*parameter.shape, seed=50 + number) * parameter.std() * size
                parameter.copy_(gain * (parameter + error))
    return changed


def outputs_of(model, images=IMAGES, kinds=(nn.Module,)):
    """What each module gave, by name; of all calls together."""
    found, hooks = {}, []
    for name, module in model.named_modules():
        if name and isinstance(module, kinds):
            hooks.append(
                module.register_forward_hook(
                    lambda module, inputs, output, name=name: found.setdefault(name, []).append(output.detach())
                )
            )
    with torch.no_grad():
        model(images)
    for hook in hooks:
        hook.remove()
    return found


def moments(tensors, channel=1):
    flat = torch.cat([tensor.movedim(channel, 0).flatten(1) for tensor in tensors], 1)
    return flat.mean(1), flat.var(1, unbiased=False)


def distance(model, reference, images=IMAGES):
    with torch.no_grad():
        return float((model(images) - reference(images)).square().mean())


def recalibrated_copy(model, reference, images=IMAGES):
    model = copy.deepcopy(model)
    recalibrate(model, reference, ImageProbe(images))
    return model


# ---- norms


@pytest.mark.parametrize('gain', [1.0, 0.6, -1.5])
def test_channels_have_the_moments_of_the_original_behind_every_norm(gain):
    reference = seeded(Net)
    worse = perturbed(reference, gain=abs(gain))
    recalibrated = recalibrated_copy(worse, reference)
    expected = outputs_of(reference, kinds=nn.BatchNorm2d)
    before, after = (outputs_of(model, kinds=nn.BatchNorm2d) for model in (worse, recalibrated))
    for name in ('norm', 'again'):
        mean, variance = moments(expected[name])
        found_mean, found_variance = moments(after[name])
        torch.testing.assert_close(found_mean, mean, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(found_variance, variance, rtol=1e-3, atol=1e-5)
        assert not torch.allclose(moments(before[name])[1], variance, rtol=0.05)
    assert distance(recalibrated, reference) < 0.5 * distance(worse, reference)


def test_only_differences_count_not_the_statistics_of_the_images():
    """An unchanged network stays as it was, however unlike the real images these are."""
    reference = seeded(Net)
    recalibrated = recalibrated_copy(reference, reference, 5 * IMAGES - 2)
    for key, tensor in reference.state_dict().items():
        torch.testing.assert_close(recalibrated.state_dict()[key], tensor, rtol=1e-4, atol=1e-5)


def test_a_channel_that_is_scaled_and_shifted_is_taken_back_for_all_images():
    reference = seeded(Net)
    worse = copy.deepcopy(reference)
    with torch.no_grad():
        worse.one.weight.mul_(torch.linspace(0.5, 2, 16)[:, None, None, None])
        worse.two.bias.add_(3.0)
    recalibrated = recalibrated_copy(worse, reference)
    other = randn(4, 3, 12, 12, seed=8) * 2 - 1
    assert distance(worse, reference, other) > 1e-2
    torch.testing.assert_close(recalibrated(other), reference(other), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize('dead', ['in both', 'in the compressed one', 'in the original'])
def test_a_dead_channel_does_not_blow_up(dead):
    reference = seeded(Net)
    worse = perturbed(reference)
    with torch.no_grad():
        for model, here in ((worse, dead != 'in the original'), (reference, dead != 'in the compressed one')):
            if here:
                model.one.weight[3] = 0
    recalibrated = recalibrated_copy(worse, reference)
    for norm, original in ((recalibrated.norm, reference.norm), (recalibrated.again, reference.again)):
        assert norm.running_mean.isfinite().all() and (norm.running_var >= 0).all()
        spread = ((norm.running_var + norm.eps) / (original.running_var + original.eps)).sqrt()
        low, high = recalibration.GAINS
        assert (spread >= 0.999 * low).all() and (spread <= 1.001 * high).all()
    assert recalibrated(IMAGES).isfinite().all()


@torch.no_grad()
def test_statistics_beyond_float32_leave_biases_and_norms_finite():
    reference = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1)).eval()
    reference[0].weight[:2] *= 1e37
    reference[1].weight[0] = 1e25
    compressed = copy.deepcopy(reference)
    compressed[0].weight *= 1.1
    recalibrate(compressed, reference, ImageProbe(torch.randn(4, 3, 8, 8) * 10))
    assert all(tensor.isfinite().all() for tensor in compressed.state_dict().values())
    assert torch.equal(compressed[0].bias[:2], reference[0].bias[:2])
    assert not torch.equal(compressed[0].bias[2:], reference[0].bias[2:])


@pytest.mark.parametrize('affine', [True, False])
def test_a_norm_whose_statistics_were_folded_into_its_factors(affine):
    """It computes the same with other numbers; afterwards it has those of the original again."""
    reference = seeded(Net)
    if not affine:
        reference.norm = nn.BatchNorm2d(16, affine=False)
        reference.norm.running_mean.normal_()
        reference = reference.eval()
    folded = copy.deepcopy(reference)
    norm, original = folded.norm, reference.norm
    with torch.no_grad():
        if affine:
            scale = (original.running_var + original.eps).rsqrt()
            norm.weight.copy_(original.weight * scale)
            norm.bias.copy_(original.bias - original.running_mean * scale * original.weight)
            norm.running_mean.zero_()
            norm.running_var.fill_(1 - norm.eps)
    torch.testing.assert_close(folded(IMAGES), reference(IMAGES), rtol=1e-4, atol=1e-4)
    worse = copy.deepcopy(folded)
    with torch.no_grad():
        worse.one.weight.mul_(1.3)
    recalibrated = recalibrated_copy(worse, reference)
    if affine:
        assert torch.equal(recalibrated.norm.weight, original.weight) and torch.equal(
            recalibrated.norm.bias, original.bias
        )
    torch.testing.assert_close(recalibrated(IMAGES), reference(IMAGES), rtol=1e-3, atol=1e-3)


# ---- biases


def test_means_behind_every_bias_are_those_of_the_original():
    reference = seeded(Tokens)
    worse = perturbed(reference)
    recalibrated = recalibrated_copy(worse, reference)
    expected, before, after = (outputs_of(model) for model in (reference, worse, recalibrated))
    for name, channel in (('embed', 1), ('norm', -1), ('one', -1), ('groups', 1), ('head', -1)):
        mean = moments(expected[name], channel)[0]
        torch.testing.assert_close(moments(after[name], channel)[0], mean, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(moments(before[name], channel)[0], mean, rtol=1e-2)
    assert distance(recalibrated, reference) < distance(worse, reference)


def test_biases_are_recalibrated_on_what_recalibrated_layers_before_them_give():
    """The output that a hook corrects on the fly is the output of the recalibrated network itself."""
    reference = seeded(Net)
    worse = perturbed(reference)
    recalibrated = recalibrated_copy(worse, reference)
    torch.testing.assert_close(recalibrated(IMAGES).mean(0), reference(IMAGES).mean(0), rtol=1e-4, atol=1e-5)


class Shared(nn.Module):
    """A head on two levels, as detectors have them."""

    def __init__(self):
        super().__init__()
        self.head = nn.Conv2d(3, 8, 3)
        self.norm = nn.BatchNorm2d(8)
        self.used = nn.Conv2d(8, 4, 1)
        self.unused = nn.Conv2d(8, 4, 1)

    def forward(self, x):
        levels = [x, F.avg_pool2d(x, 2)]
        return torch.cat([self.used(self.norm(self.head(level))).flatten(2) for level in levels], 2)


def test_a_module_that_is_called_twice_is_recalibrated_by_both_calls():
    reference = seeded(Shared)
    worse = copy.deepcopy(reference)
    with torch.no_grad():
        worse.head.bias.add_(torch.linspace(-1, 1, 8))
    recalibrated = recalibrated_copy(worse, reference)
    torch.testing.assert_close(recalibrated.head.bias, reference.head.bias, rtol=1e-4, atol=1e-5)
    assert torch.equal(recalibrated.unused.bias, worse.unused.bias)


def test_pooled_statistics_are_those_of_all_calls_together():
    parts = [randn(5, 4, 3, 3), 2 * randn(5, 4, 7, 2, seed=2) + 3]
    pooled = recalibration._pooled([recalibration._Statistics.of(part, 1) for part in parts])
    mean, variance = moments(parts)
    torch.testing.assert_close(pooled.mean, mean)
    torch.testing.assert_close(pooled.variance, variance)


@pytest.mark.parametrize(('shape', 'channel'), [((5, 4), -1), ((5, 4), 1), ((2, 3, 6), -1), ((2, 6, 5, 3), 1)])
def test_statistics_of_a_channel_over_everything_else(shape, channel):
    values = 2 * randn(*shape) + 100
    found = recalibration._Statistics.of(values, channel)
    mean, variance = moments([values.double()], channel)
    torch.testing.assert_close(found.mean.double(), mean, rtol=1e-5, atol=0)
    torch.testing.assert_close(found.variance.double(), variance, rtol=1e-4, atol=0)
    assert found.count == values.numel() // len(mean)


class Loop(nn.Module):
    """A head that sees one image at a time, or as many as ``chunk``."""

    def __init__(self, chunk=1):
        super().__init__()
        self.chunk = chunk
        self.stem = nn.Conv2d(3, 8, 3)
        self.head = nn.Conv2d(8, 4, 3)

    def forward(self, x):
        return torch.cat([self.head(part) for part in self.stem(x).split(self.chunk)])


def test_a_loop_over_images_is_recalibrated_by_all_of_them():
    reference = seeded(Loop)
    worse = copy.deepcopy(reference)
    with torch.no_grad():
        worse.stem.weight.add_(0.1)
        worse.head.bias.add_(torch.linspace(-1, 1, 4))
    recalibrated = recalibrated_copy(worse, reference)
    torch.testing.assert_close(
        recalibrated(IMAGES).mean((0, 2, 3)), reference(IMAGES).mean((0, 2, 3)), rtol=1e-4, atol=1e-5
    )


def test_a_layer_that_few_images_call_once_is_recalibrated_by_its_first_call():
    reference = seeded(lambda: Loop(4))
    worse = perturbed(reference)
    recalibrated, short = recalibrated_copy(worse, reference), recalibrated_copy(worse, reference, IMAGES[:4])
    assert not torch.equal(recalibrated.head.bias, worse.head.bias)
    expected, found = (outputs_of(model)['head'][0] for model in (reference, recalibrated))
    torch.testing.assert_close(moments([found])[0], moments([expected])[0], rtol=1e-4, atol=1e-5)
    assert torch.equal(outputs_of(short, IMAGES[:4])['stem'][0], outputs_of(short)['stem'][0][:4])


# ---- the original beside it


class Other(nn.Module):
    """Two layers in an order that depends on the weights, and one that is left out in one of the orders."""

    def __init__(self):
        super().__init__()
        self.one, self.two, self.three = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
        self.norm = nn.BatchNorm2d(3)

    def forward(self, x):
        if self.two.weight.mean() > 0:
            return self.norm(self.two(self.three(self.one(x))))
        return self.norm(self.one(self.two(x)))


def turned(model, number=1):
    changed = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in changed.parameters():
            parameter += 0.1 * number
        changed.two.weight.neg_()
    return changed


class Pair(Workers):
    """One of two threads that post to each other."""

    size = 2

    def __init__(self, rank, queues):
        self.rank, self.queues = rank, queues

    def post(self, data, to):
        assert isinstance(data, bytes)
        self.queues[self.rank, to].put(data)

    def receive(self, sender):
        return self.queues[sender, self.rank].get(timeout=60)


def in_a_thread(model, reference, probe):
    recalibrate(model, reference, probe, Executor(2))


def in_a_process(model, reference, probe):
    queues = defaultdict(SimpleQueue)
    with ThreadPoolExecutor(1) as pool:
        observed = pool.submit(observe, copy.deepcopy(reference), probe, Executor(1, Pair(OBSERVER, queues)))
        recalibrate(model, reference, probe, Executor(1, Pair(0, queues)))
        observed.result()
    assert all(queue.empty() for queue in queues.values())


@pytest.mark.parametrize('beside', [in_a_thread, in_a_process])
@pytest.mark.parametrize('make', [Net, Tokens, Shared, Loop, lambda: Loop(4), Other])
def test_the_same_with_the_original_beside_it(make, beside):
    reference = seeded(make)
    pairs = [(perturbed(reference), reference)]
    if make is Other:
        pairs = [(turned(reference), reference), (reference, turned(reference))]
    for worse, original in pairs:
        alone, recalibrated = recalibrated_copy(worse, original), copy.deepcopy(worse)
        beside(recalibrated, original, ImageProbe(IMAGES))
        changed = [
            key for key, tensor in worse.state_dict().items() if not torch.equal(tensor, alone.state_dict()[key])
        ]
        assert changed
        for key, tensor in alone.state_dict().items():
            assert torch.equal(recalibrated.state_dict()[key], tensor), key


class Failing(ImageProbe):
    """Cannot run one of the models at the last image."""

    def __init__(self, images, culprit):
        super().__init__(images)
        self.culprit = culprit

    def run(self, model, first, last):
        found = super().run(model, first, last)
        if model is self.culprit and last == self.images:
            raise ValueError('broken image')
        return found


@pytest.mark.parametrize('threads', [1, 2])
@pytest.mark.parametrize('fails', ['original', 'compressed'])
def test_an_error_of_either_network_is_told(threads, fails):
    reference = seeded(Other)
    worse = turned(reference)
    probe = Failing(IMAGES, reference if fails == 'original' else worse)
    with pytest.raises(ValueError, match='broken image'):
        recalibrate(worse, reference, probe, Executor(threads))


def test_the_original_stops_where_the_compressed_network_fails():
    failed, ran = threading.Event(), []

    class Waiting(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two, self.three = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3)
            self.is_original = True

        def forward(self, x):
            x = self.one(x)
            if len(x) > recalibration.FEW_IMAGES:
                if not self.is_original:
                    raise ValueError('broken network')
                assert failed.wait(60)
                x = self.two(x)
                ran.append('three')
                x = self.three(x)
            return x

    class Telling(ImageProbe):
        def run(self, model, first, last):
            try:
                return super().run(model, first, last)
            except ValueError:
                threading.Timer(0.2, failed.set).start()  # by then the original is told to stop
                raise

    reference = seeded(Waiting)
    broken = copy.deepcopy(reference)
    broken.is_original = False
    with pytest.raises(ValueError, match='broken network'):
        recalibrate(broken, reference, Telling(torch.ones(5, 3)), Executor(2))
    assert failed.is_set() and not ran


# ---- nothing else


@pytest.mark.parametrize('make', [Net, Tokens, Shared])
def test_weights_flags_hooks_and_the_original_stay(make):
    reference = seeded(make)
    worse = perturbed(reference)
    worse.train()
    next(worse.parameters()).requires_grad_(False)
    before, original = copy.deepcopy(worse), copy.deepcopy(reference)
    recalibrate(worse, reference, ImageProbe(IMAGES))
    changed = set()
    for key, tensor in worse.state_dict().items():
        if not torch.equal(tensor, before.state_dict()[key]):
            changed.add(key)
    assert changed and all(key.endswith(('bias', 'running_mean', 'running_var')) for key in changed)
    assert all(torch.equal(tensor, original.state_dict()[key]) for key, tensor in reference.state_dict().items())
    for now, then in zip((*worse.modules(), *reference.modules()), (*before.modules(), *original.modules())):
        assert now.training == then.training
        assert not now._forward_hooks and not now._forward_pre_hooks
    assert [p.requires_grad for p in worse.parameters()] == [p.requires_grad for p in before.parameters()]


@pytest.mark.parametrize('threads', [1, 2])
def test_hooks_go_when_the_probe_fails(threads):
    class Broken(ImageProbe):
        def run(self, model, first, last):
            raise ValueError('broken image')

    model, reference = seeded(Net), seeded(Net)
    with pytest.raises(ValueError, match='broken image'):
        recalibrate(model, reference, Broken(IMAGES), Executor(threads))
    for module in (*model.modules(), *reference.modules()):
        assert not module._forward_hooks and not module._forward_pre_hooks


def test_no_more_images_than_fit_at_once(monkeypatch):
    seen = []

    class Counting(ImageProbe):
        def run(self, model, first, last):
            seen.append((first, last))
            return super().run(model, first, last)

    model = seeded(Net)
    recalibrate(model, copy.deepcopy(model), Counting(IMAGES, batch=2))
    monkeypatch.setattr(recalibration, 'MAX_IMAGES', 5)
    recalibrate(model, copy.deepcopy(model), Counting(IMAGES, batch=2))
    assert seen == [(0, 2), (0, 16), (0, 16), (0, 2), (0, 5), (0, 5)]
