"""The pullback metric: exact where it can be computed by brute force, true where it can be measured."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from mmriem.core.errors import RiemError
from mmriem.core.images.probe import ImageProbe, Output
from mmriem.core.metric import metric as metric_module
from mmriem.core.metric import observation, pullback
from mmriem.core.metric.metric import parts
from mmriem.core.metric.pullback import collect
from mmriem.core.weights.views import every_weight


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def seeded(make, seed=0):
    torch.manual_seed(seed)
    return make()


class RecordingProbe(ImageProbe):
    """Keeps what the network said."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.outputs = {}

    def run(self, model, first, last):
        found = super().run(model, first, last)
        self.outputs[first, last] = found[0].detach()
        return found


def metrics(model, images, batch=8, **options):
    """The metric of every weight; the network must compute under watch what it does otherwise."""
    probe = RecordingProbe(images, batch)
    found = collect(model, every_weight(model), probe, **options)
    with torch.no_grad():
        for (first, last), output in probe.outputs.items():
            torch.testing.assert_close(output, model.eval()(images[first:last]), rtol=1e-4, atol=1e-5)
    return found


def predicted(metric, delta):
    """``sum_i g_i dw_i^T A dw_i`` of a matrix."""
    groups = delta.double().reshape(metric.groups, -1, delta.shape[1])
    total, start = 0.0, 0
    for block in metric.blocks:
        part = groups[..., start : start + block.shape[-1]]
        total = total + (part @ block.double() * part).sum(2)
        start += block.shape[-1]
    assert start == delta.shape[1]
    return float((total.reshape(-1) * metric.output_weights).sum())


def measured(model, view, delta, images):
    """Mean over the images of the squared error of the output, relative to its variance."""
    changed = copy.deepcopy(model).eval()
    parameter = dict(changed.named_parameters())[view.name]
    with torch.no_grad():
        before = changed(images).double()
        parameter += view.from_matrix(delta)
        after = changed(images).double()
    return float((after - before).square().mean() / before.var())


def ratio_of_prediction(model, images, name, metric, size=1e-3, draws=10):
    """Predicted over measured distortion, both the sum over several random errors."""
    view = next(view for view in every_weight(model) if view.name == name)
    deltas = [size * randn(*view.matrix_shape, seed=seed) for seed in range(draws)]
    expected = sum(predicted(metric, delta) for delta in deltas)
    return expected / sum(measured(model, view, delta, images) for delta in deltas)


class Masked(nn.Module):
    """A layer whose outputs matter more at some positions and channels than at others, by known factors."""

    def __init__(self, layer, *output):
        super().__init__()
        self.layer = layer
        self.register_buffer('mask', randn(*output, seed=9))

    def forward(self, x):
        return self.layer(x) * self.mask


def columns_of(layer, inputs):
    """The im2col columns ``(groups, positions, in)``, straight from ``unfold``."""
    padding = layer.padding
    if layer.padding_mode != 'zeros':
        inputs = F.pad(inputs, (padding[1], padding[1], padding[0], padding[0]), layer.padding_mode)
        padding = 0
    elif padding == 'same':
        padding = tuple(d * (k - 1) // 2 for d, k in zip(layer.dilation, layer.kernel_size))
    elif padding == 'valid':
        padding = 0
    unfolded = F.unfold(inputs, layer.kernel_size, layer.dilation, padding, layer.stride)
    grouped = unfolded.unflatten(1, (layer.groups, -1))
    return grouped.permute(1, 0, 3, 2).flatten(1, 2).double()


def covariances(second, first, energy):
    mean = first / energy
    found = second / energy - mean[:, :, None] * mean[:, None, :]
    return found - torch.diag_embed(found.diagonal(dim1=1, dim2=2))


def shrunk(halves):
    """Mean second moments of both halves, less the share of their covariances that is chance."""
    total = [sum(parts) for parts in zip(*halves)]
    blocks, off = total[0] / total[2], covariances(*total)
    if len(halves) == 1:
        return blocks
    chance = (covariances(*halves[0]) - covariances(*halves[1])).square().sum((1, 2))
    chance *= halves[0][2] * halves[1][2] / total[2] ** 2
    share = (chance / off.square().sum((1, 2))).clamp_max(1)
    return blocks - share[:, None, None] * off


def brute_force(model, images, batch, columns):
    """``A`` of each group, and ``g``, of a `Masked` layer: the gradients are signs times mask over scale.

    ``g`` is the squared gradient of a row of weights over the trace of its ``A``.
    """
    halves, rows = [[0.0, 0.0, 0.0], [0.0, 0.0, 0.0]], 0.0
    weight = model.layer.weight
    for number, (first, last) in enumerate(ImageProbe(images, batch).batches()):
        part = images[first:last]
        with torch.no_grad():
            output = model(part).double()
        scale = output.std() * (output.numel() / len(part)) ** 0.5
        squared = (model.mask.double() / scale).square().expand_as(output)
        squared = squared.movedim(1, -1).flatten(0, -2) if output.dim() == 4 else squared.flatten(0, -2)
        x, gamma = columns(part), squared.sum(1)
        sums = torch.einsum('gpi,p,gpj->gij', x, gamma, x), torch.einsum('gpi,p->gi', x, gamma), gamma.sum()
        halves[number % 2] = [before + more for before, more in zip(halves[number % 2], sums)]
        projection = pullback._random_projection([Output(model(part), None, 1)], (0, len(part)), number)
        (gradient,) = torch.autograd.grad(projection, weight)
        rows = rows + gradient.double().flatten(1).square().sum(1)
    blocks = shrunk([half for half in halves if half[2]])
    traces = blocks.diagonal(dim1=1, dim2=2).sum(1)
    return blocks, rows / len(images) / traces.repeat_interleave(len(rows) // len(traces))


def assert_close(found, expected):
    scale = float(expected.abs().max())
    torch.testing.assert_close(found.double(), expected.double(), rtol=1e-4, atol=1e-5 * scale)


CONVOLUTIONS = {
    'plain': dict(kernel_size=3),
    'pointwise': dict(kernel_size=1),
    'oblong': dict(kernel_size=(3, 2), stride=(1, 2), padding=(2, 1)),
    'strided': dict(kernel_size=3, stride=2, padding=1),
    'dilated': dict(kernel_size=3, dilation=2, padding=2),
    'grouped': dict(kernel_size=3, groups=2, padding=1),
    'depthwise': dict(kernel_size=3, groups=4, padding=1, stride=2),
    'same': dict(kernel_size=3, padding='same', dilation=2),
    'valid': dict(kernel_size=3, padding='valid'),
    'reflected': dict(kernel_size=3, padding=1, padding_mode='reflect'),
    'without bias': dict(kernel_size=3, bias=False),
}


# ---- by brute force


@pytest.mark.parametrize('batch', [6, 4])
@pytest.mark.parametrize('name', CONVOLUTIONS)
def test_of_a_convolution(name, batch):
    layer = seeded(lambda: nn.Conv2d(4, 8, **CONVOLUTIONS[name]))
    images = randn(6, 4, 7, 8, seed=1) + 0.3
    model = Masked(layer, *layer(images).shape[1:]).eval()
    metric = metrics(model, images, batch)['layer.weight']
    blocks, weights = brute_force(model, images, batch, lambda part: columns_of(layer, part))
    assert metric.source == 'inputs' and metric.groups == layer.groups and len(metric.blocks) == 1
    assert_close(metric.blocks[0], blocks)
    assert_close(metric.output_weights, weights)
    assert_close(metric.dense(), blocks.mean(0))


@pytest.mark.filterwarnings('ignore:Using padding=.same. with even kernel')
def test_same_padding_of_an_even_kernel():
    """The surplus is on the right, as it is in the layer itself."""
    layer = seeded(lambda: nn.Conv2d(2, 3, 2, padding='same'))
    images = randn(4, 2, 5, 6, seed=1)
    model = Masked(layer, 3, 5, 6).eval()
    metric = metrics(model, images)['layer.weight']
    shifted = nn.Conv2d(2, 3, 2)
    blocks, _ = brute_force(model, images, 8, lambda part: columns_of(shifted, F.pad(part, (0, 1, 0, 1))))
    assert_close(metric.blocks[0], blocks)


@pytest.mark.parametrize('tokens', [None, 5])
def test_of_a_linear_layer(tokens):
    class Net(Masked):
        def forward(self, x):
            return super().forward(x.flatten(1) if tokens is None else x.flatten(1).unflatten(1, (tokens, -1)))

    layer = nn.Linear(60 if tokens is None else 12, 7)
    model = seeded(lambda: Net(layer, *([7] if tokens is None else [tokens, 7]))).eval()
    images = randn(10, 3, 4, 5, seed=2) - 0.2
    metric = metrics(model, images, 4)['layer.weight']
    blocks, weights = brute_force(model, images, 4, lambda part: part.reshape(1, -1, layer.in_features).double())
    assert_close(metric.blocks[0], blocks)
    assert_close(metric.output_weights, weights)


def test_blocks_of_a_metric_are_those_of_the_whole_one(monkeypatch):
    model = seeded(lambda: Masked(nn.Conv2d(4, 6, 3, groups=2), 6, 5, 6)).eval()
    images = randn(4, 4, 7, 8, seed=1)
    whole = metrics(model, images)['layer.weight']
    monkeypatch.setattr(metric_module, 'MAX_COLUMNS', 7)
    split = metrics(model, images)['layer.weight']
    assert [block.shape[-1] for block in split.blocks] == [6, 6, 6] and split.groups == 2
    for number, block in enumerate(split.blocks):
        here = slice(6 * number, 6 * number + 6)
        assert_close(block, whole.blocks[0][:, here, here])
    assert_close(split.output_weights, whole.output_weights)
    assert split.dense().shape == (18, 18) and float(split.dense()[0, -1]) == 0


@pytest.mark.parametrize(
    ('columns', 'sizes'), [(1, [1]), (10, [10]), (11, [6, 5]), (30, [10] * 3), (31, [8] * 3 + [7])]
)
def test_parts_are_equal_and_cover_all_columns(monkeypatch, columns, sizes):
    monkeypatch.setattr(metric_module, 'MAX_COLUMNS', 10)
    found = parts(columns)
    assert [part.stop - part.start for part in found] == sizes
    assert [part.start for part in found[1:]] == [part.stop for part in found[:-1]] and found[-1].stop == columns


def test_sampled_positions_stand_for_all(monkeypatch):
    model = seeded(lambda: Masked(nn.Conv2d(3, 6, 3), 6, 22, 22)).eval()
    images = randn(8, 3, 24, 24, seed=1) + 0.5
    whole = metrics(model, images)['layer.weight']
    monkeypatch.setattr(observation, 'POSITIONS', 1000)
    sampled = metrics(model, images)['layer.weight']
    assert not torch.equal(sampled.blocks[0], whole.blocks[0])
    error = (sampled.blocks[0] - whole.blocks[0]).norm() / whole.blocks[0].norm()
    assert float(error) < 0.15
    torch.testing.assert_close(sampled.output_weights, whole.output_weights, rtol=0.3, atol=0)
    again = metrics(model, images)['layer.weight']
    assert torch.equal(sampled.blocks[0], again.blocks[0])
    other = metrics(model, images, seed=1)['layer.weight']
    assert not torch.equal(sampled.blocks[0], other.blocks[0])


# ---- the distortion that it predicts


class Call(nn.Module):
    """A network out of layers and a function of them and the images."""

    def __init__(self, forward, **layers):
        super().__init__()
        self._call = forward
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x):
        return self._call(self, x)


def tokens_of(x):
    return x.flatten(2).transpose(1, 2)


def attention(**options):
    return nn.MultiheadAttention(8, 2, batch_first=True, **options)


def other_sizes(net, x):
    tokens = tokens_of(x)
    return net.attention(tokens, torch.cat([tokens, tokens[..., :2] * 2], -1), tokens[..., :6])[0]


NETS = {
    'linear': lambda: Call(lambda net, x: net.fc(x.flatten(1)), fc=nn.Linear(8 * 25, 12)),
    'convolution': lambda: Call(lambda net, x: net.conv(x), conv=nn.Conv2d(8, 6, 3, 2, 1)),
    'depthwise': lambda: Call(lambda net, x: net.conv(x), conv=nn.Conv2d(8, 8, 3, groups=8)),
    'transposed': lambda: Call(lambda net, x: net.up(x), up=nn.ConvTranspose2d(8, 6, 2, 2)),
    'transposed, grouped': lambda: Call(lambda net, x: net.up(x), up=nn.ConvTranspose2d(8, 6, 3, 3, groups=2)),
    'packed attention': lambda: Call(lambda net, x: net.attention(*[tokens_of(x)] * 3)[0], attention=attention()),
    'other sizes of keys': lambda: Call(other_sizes, attention=attention(kdim=10, vdim=6)),
    'called twice': lambda: Call(
        lambda net, x: torch.cat([net.conv(x), net.conv(x.flip(2) ** 2)], 1), conv=nn.Conv2d(8, 6, 3)
    ),
}
LINEAR_IN = {
    'linear': 'fc.weight',
    'convolution': 'conv.weight',
    'depthwise': 'conv.weight',
    'transposed': 'up.weight',
    'transposed, grouped': 'up.weight',
    'packed attention': 'attention.out_proj.weight',
    'other sizes of keys': 'attention.out_proj.weight',
    'called twice': 'conv.weight',
}


def correlated(count, channels, size, seed=5):
    """Images with neighbours alike and a mean, as those of a network are."""
    return F.avg_pool2d(randn(count, channels, size + 2, size + 2, seed=seed), 3, 1) * 3 + 0.3


@pytest.mark.parametrize('name', NETS)
def test_the_metric_of_the_last_layer_predicts_the_measured_distortion(name):
    model = seeded(NETS[name]).eval()
    images = correlated(24, 8, 5)
    weight = LINEAR_IN[name]
    found = [metrics(model, images, 3, seed=seed)[weight] for seed in range(8)]  # each a random projection
    assert {metric.source for metric in found} == {'inputs'}
    ratios = [ratio_of_prediction(model, images, weight, metric, draws=3) for metric in found]
    assert sum(ratios) / len(ratios) == pytest.approx(1.0, rel=0.25)


@pytest.mark.parametrize(
    ('name', 'weight'),
    [
        ('packed attention', 'attention.in_proj_weight'),
        ('other sizes of keys', 'attention.q_proj_weight'),
        ('other sizes of keys', 'attention.v_proj_weight'),
    ],
)
def test_the_projections_of_attention(name, weight):
    """Errors of neighbouring tokens add up where attention is flat, which the metric leaves out."""
    model = seeded(NETS[name]).eval()
    images = randn(64, 8, 3, 3, seed=5)
    found = metrics(model, images, 16)
    assert found[weight].source == 'inputs'
    assert ratio_of_prediction(model, images, weight, found[weight], 1e-4) == pytest.approx(1.0, rel=0.35)
    view = next(view for view in every_weight(model) if view.name == weight)
    assert found[weight].blocks[0].shape == (1, view.matrix_shape[1], view.matrix_shape[1])
    assert (found[weight].output_weights > 0).all()


def deep():
    return Call(
        lambda net, x: net.fc(F.relu(net.two(F.relu(net.one(x)))).flatten(1)),
        one=nn.Conv2d(3, 12, 3, 2, 1),
        two=nn.Conv2d(12, 16, 3, 2, 1),
        fc=nn.Linear(16 * 4, 10),
    )


@pytest.mark.parametrize('weight', ['two.weight', 'fc.weight'])
def test_a_layer_deep_in_a_network(weight):
    model = seeded(deep).eval()
    images = randn(128, 3, 8, 8, seed=4)
    metric = metrics(model, images, 32)[weight]
    assert ratio_of_prediction(model, images, weight, metric, 1e-4) == pytest.approx(1.0, rel=0.3)


def test_inputs_count_by_the_gradient_behind_them():
    """Positions that a ReLU shuts off do not matter: the metric of what is left is that of the open half."""
    layer = nn.Linear(6, 4)

    def forward(net, x):
        x = x.flatten(1)
        return net.fc(x) * (x[:, :1] > 0)

    model, images = seeded(lambda: Call(forward, fc=layer)).eval(), randn(200, 6, 1, 1, seed=2)
    metric = metrics(model, images, 200)['fc.weight']
    x = images.flatten(1)
    x = x[x[:, 0] > 0].double()
    assert_close(metric.blocks[0][0], x.T @ x / len(x))


# ---- how a layer may be called


@pytest.mark.parametrize('kind', ['convolution', 'tokens', 'flat'])
def test_an_in_place_activation_behind_a_layer(kind):
    def layer():
        return nn.Conv2d(8, 6, 3) if kind == 'convolution' else nn.Linear(8, 6)

    def net(inplace):
        def forward(net, x):
            x = x if kind == 'convolution' else tokens_of(x) if kind == 'tokens' else x.mean((2, 3))
            return F.relu(net.layer(x), inplace=inplace) * 2

        return seeded(lambda: Call(forward, layer=layer())).eval()

    images = randn(6, 8, 5, 5)
    found, expected = (metrics(net(inplace), images)['layer.weight'] for inplace in (True, False))
    assert found.source == 'inputs'
    assert torch.equal(found.blocks[0], expected.blocks[0])
    assert torch.equal(found.output_weights, expected.output_weights)


def test_calls_of_one_module_add_up():
    layer = seeded(lambda: nn.Linear(8, 6))
    net = Call(lambda net, x: torch.cat([net.fc(x.mean((2, 3))), net.fc(x.amax((2, 3)))], 0), fc=layer)
    images = randn(6, 8, 5, 5)
    found = metrics(net, images, 6)['fc.weight']
    inputs = torch.cat([images.mean((2, 3)), images.amax((2, 3))]).double()
    assert_close(found.blocks[0][0], inputs.T @ inputs / 12)


@pytest.mark.parametrize('call', ['keywords', 'function', 'checkpointed'])
def test_calls_in_other_words(call):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(8, 6, 3)
            self.with_cp = call == 'checkpointed'

        def forward(self, x):
            if call == 'keywords':
                return F.conv2d(x, weight=self.conv.weight, bias=self.conv.bias, padding=0)
            if call == 'function':
                return torch.conv2d(x, self.conv.weight, self.conv.bias)
            return checkpoint(self.conv, x, use_reentrant=False) if self.with_cp else self.conv(x)

    model, images = seeded(Net), randn(6, 8, 5, 5)
    plain = Call(lambda net, x: net.conv(x), conv=model.conv)
    found, expected = metrics(model, images)['conv.weight'], metrics(plain, images)['conv.weight']
    assert found.source == 'inputs' and torch.equal(found.blocks[0], expected.blocks[0])
    assert torch.equal(found.output_weights, expected.output_weights)


def test_a_table_has_the_squares_of_its_gradients():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Parameter(torch.randn(9, 8))
            self.register_buffer('factors', torch.arange(5.0))

        def forward(self, x):
            return x.mean((2, 3))[:, None] + self.table[[0, 2, 2, 7, 8]] * self.factors[:, None]

    model, images = seeded(Net), randn(1, 8, 5, 5)
    metric = metrics(model, images)['table']
    assert metric.source == 'gradients' and metric.groups == 1
    assert metric.output_weights[[1, 3, 4, 5, 6]].tolist() == [0.0] * 5
    assert metric.output_weights[0] == 0 and (metric.output_weights[[2, 7, 8]] > 0).all()
    assert float(metric.output_weights[8] / metric.output_weights[7]) == pytest.approx((4 / 3) ** 2, rel=1e-5)
    block = metric.blocks[0][0]
    assert torch.equal(block, torch.diag(block.diagonal())) and float(block.trace()) == pytest.approx(1.0, rel=1e-5)


def test_what_the_outputs_do_not_depend_on_is_left_out():
    def forward(net, x):
        net.unheard(x)
        return net.used(x) + 0 * net.silenced(x)

    layers = {name: nn.Conv2d(8, 6, 3) for name in ('used', 'unheard', 'silenced', 'uncalled')}
    assert set(metrics(Call(forward, **layers), randn(3, 8, 5, 5))) == {'used.weight'}


def test_outputs_without_a_gradient_leave_every_weight_out():
    model = Call(lambda net, x: net.fc(x.flatten(1)).argmax(1), fc=nn.Linear(8 * 25, 3))
    probe = ImageProbe(randn(3, 8, 5, 5))
    assert collect(model, every_weight(model), probe) == {}


def test_only_the_views_asked_for_are_measured():
    model, images = seeded(deep), randn(4, 3, 8, 8)
    views = [view for view in every_weight(model) if view.name == 'two.weight']
    found = collect(model, views, ImageProbe(images, 8))
    assert set(found) == {'two.weight'}
    assert torch.equal(found['two.weight'].blocks[0], metrics(model, images)['two.weight'].blocks[0])


# ---- the same again, and nothing else changed


def everything():
    def forward(net, x):
        x = net.norm(net.one(x))
        tokens = tokens_of(net.up(F.relu(x, inplace=True))) + net.table[1]
        return net.attention(tokens, tokens, tokens)[0].mean(1)

    net = Call(
        forward,
        one=nn.Conv2d(3, 12, 3, 2, 1),
        norm=nn.BatchNorm2d(12),
        up=nn.ConvTranspose2d(12, 8, 2, 2),
        attention=attention(),
    )
    net.table = nn.Parameter(torch.randn(4, 8))
    return net


@pytest.fixture
def three_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def same(left, right):
    assert left.keys() == right.keys()
    return all(
        torch.equal(left[name].output_weights, right[name].output_weights)
        and all(torch.equal(*pair) for pair in zip(left[name].blocks, right[name].blocks))
        for name in left
    )


def test_the_result_does_not_depend_on_the_threads(three_threads):
    model, probe = seeded(everything), ImageProbe(randn(10, 3, 8, 8), 3)
    views = every_weight(model)
    found = [collect(model, views, probe, threads=threads, seed=4) for threads in (1, 1, 2, 3)]
    assert set(found[0]) == {view.name for view in views}
    assert all(same(found[0], other) for other in found[1:])
    assert torch.get_num_threads() == 3
    assert not same(found[0], collect(model, views, probe, seed=5))


@pytest.mark.parametrize('seed', [0, 1 << 50, (1 << 63) - 1])
def test_every_seed_of_the_settings_will_do(seed):
    model = seeded(deep)
    assert len(collect(model, every_weight(model), ImageProbe(randn(2, 3, 8, 8)), seed=seed)) == 3


def test_the_model_stays_as_it_was():
    model = seeded(everything).train()
    model.one.weight.requires_grad_(False)
    model.norm.eval()
    before = copy.deepcopy(model)
    collect(model, every_weight(model), ImageProbe(randn(10, 3, 8, 8), 3), threads=2)
    for (key, now), then in zip(model.state_dict().items(), before.state_dict().values()):
        assert torch.equal(now, then), key
    for now, then in zip(model.parameters(), before.parameters()):
        assert now.requires_grad == then.requires_grad and now.grad is None
    for now, then in zip(model.modules(), before.modules()):
        assert now.training == then.training
        assert not now._forward_hooks and not now._forward_pre_hooks and not now._backward_hooks


def test_progress_goes_up_to_one():
    seen = []
    model = seeded(deep)
    collect(model, every_weight(model), ImageProbe(randn(7, 3, 8, 8), 2), threads=2, on_progress=seen.append)
    assert seen == sorted(seen) and seen[0] == 0 and seen[-1] == 1 and len(set(seen)) >= 4


def test_an_exception_of_the_probe_comes_through(three_threads):
    class Broken(ImageProbe):
        def run(self, model, first, last):
            if first:
                raise ValueError('broken image')
            return super().run(model, first, last)

    model = seeded(deep)
    with pytest.raises(ValueError, match='broken image'):
        collect(model, every_weight(model), Broken(randn(7, 3, 8, 8), 2), threads=2)
    assert torch.get_num_threads() == 3


@pytest.mark.parametrize('exponent', [-120, -100, 60, 100])
def test_the_unit_of_the_inputs_changes_nothing_but_the_unit(exponent):
    """Inputs times a power of two and weights divided by it: what float32 cannot hold of ``A`` is in ``g``."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8, bias=False), nn.ReLU(), nn.Linear(8, 4))
    images, errors = torch.randn(24, 6), torch.randn(8, 6)
    expected = metrics(model, images)
    other = copy.deepcopy(model)
    with torch.no_grad():
        other[0].weight.mul_(2.0**-exponent)
    found = metrics(other, images.double().mul(2.0**exponent).float())
    same({'2.weight': found['2.weight']}, {'2.weight': expected['2.weight']})
    distortion = predicted(found['0.weight'], errors.double() * 2.0**-exponent)
    assert math.isclose(distortion, predicted(expected['0.weight'], errors), rel_tol=1e-5)


def test_sums_in_different_units_add_up():
    view = every_weight(nn.Linear(3, 2))[0]

    def sums(scales):
        found = metric_module.MetricSums.empty(view, 1)
        for seed, scale in scales:
            inputs, energy = found.weigh(scale * randn(1, 5, 3, seed=seed), randn(5, seed=seed).double().square())
            found.blocks[0] += (inputs * energy.to(inputs)[:, None]).transpose(1, 2) @ inputs
            found.rows += 1
        return found

    small, large = (0, 2.0**-60), (1, 2.0**-59)
    together = sums([small, large])
    apart = sums([small]).add(metric_module.MetricSums.from_bytes(sums([large]).to_bytes()))
    nothing = metric_module.MetricSums.from_bytes(metric_module.MetricSums.empty(view, 1).to_bytes())
    assert together.unit == apart.unit != sums([large]).unit
    assert nothing.unit is None and nothing.add(apart).unit == apart.unit
    expected = together.metric(2).blocks[0]
    assert_close(apart.metric(2).blocks[0], expected)
    assert_close(nothing.metric(2).blocks[0], expected)


class Ruled(nn.Module):
    """Rules some classes out, or all of them."""

    def __init__(self, *ruled):
        super().__init__()
        self.layer, self.ruled = nn.Linear(6, 4), list(ruled)

    def forward(self, x):
        y = self.layer(x)
        return torch.cat([y, torch.full_like(y, -math.inf)], 1)[:, self.ruled]


def test_outputs_that_are_not_finite_say_nothing():
    torch.manual_seed(0)
    model, images = Ruled(0, 1, 5), randn(16, 6)
    with_infinity = metrics(model, images, seed=1)['layer.weight']
    assert with_infinity.output_weights[:2].min() > 0
    assert (with_infinity.output_weights[2:] == 0).all()
    with pytest.raises(RiemError, match='outputs of the network: expected finite values, found none'):
        metrics(Ruled(4, 5), images)


def test_outputs_of_one_number_and_of_numbers_whose_squares_are_beyond_float32():
    torch.manual_seed(0)
    model, image = nn.Linear(6, 1), randn(1, 6)
    assert float(metrics(model, image)['weight'].output_weights) > 0
    with torch.no_grad():
        model.weight.mul_(1e30)
    assert float(metrics(model, randn(16, 6))['weight'].output_weights) > 0


def moments(rows, unit=(0, 0)):
    """Sums over rows ``(n, columns)`` that all count alike."""
    view = next(view for view in every_weight(nn.Linear(rows.shape[1], 3)))
    found = metric_module.MetricSums.empty(view, 1)
    found.unit = unit
    inputs, _ = found.weigh(rows[None], torch.ones(len(rows), dtype=torch.float64))
    found.blocks[0] += inputs.transpose(1, 2) @ inputs * 2.0 ** unit[1]
    found.firsts += inputs.sum(1) * 2.0 ** unit[1]
    return found


def of_halves(rows, units=((0, 0), (0, 0))):
    first, second = (moments(half, unit) for half, unit in zip((rows[::2], rows[1::2]), units))
    chance = first.chance(second)
    return first.add(second).metric(len(rows), chance).blocks[0][0].double()


@pytest.mark.parametrize(('count', 'least', 'most'), [(24, 0.5, 0.9), (20000, 0.8, 1.05)])
def test_few_rows_tell_less_of_the_covariances_than_of_the_mean(count, least, most):
    """The error of the moments is smaller than that of their mean over rows, clearly so where these are few."""
    mixing = torch.eye(60) + 0.3 * randn(60, 60, seed=1)
    rows, mean = randn(count, 60, seed=2) @ mixing.T + 2, torch.full((60,), 2.0, dtype=torch.float64)
    truth = (mixing @ mixing.T).double() + mean[:, None] * mean
    plain = (rows.T @ rows / count).double()
    found = of_halves(rows)
    torch.testing.assert_close(found.diagonal(), plain.diagonal(), rtol=1e-4, atol=0)
    middle = (rows.double().mean(0)[:, None] * rows.double().mean(0)).mean()
    assert found.mean() == pytest.approx(float(middle), rel=0.05)  # what all columns have in common stays
    assert least < (found - truth).norm() / (plain - truth).norm() < most
    errors = torch.linalg.eigh(rows.double().T.cov())[1].T[:30]
    cost = (errors @ found @ errors.T).trace() / (errors @ truth @ errors.T).trace()
    assert cost > 0.5  # errors that these rows hardly see are not for nothing


def test_halves_in_other_units_tell_the_same():
    rows = randn(40, 12, seed=3) + 1
    expected = of_halves(rows)
    for units in ((0, -3), (2, 1)), ((5, 0), (5, 0)):
        scale = 2.0 ** (2 * units[0][0])
        torch.testing.assert_close(of_halves(rows, units) / scale, expected, rtol=1e-5, atol=1e-6)


def test_halves_that_agree_are_believed():
    rows = randn(10, 8, seed=4)
    found = of_halves(rows.repeat_interleave(2, 0))
    torch.testing.assert_close(found, (rows.T @ rows / 10).double(), rtol=1e-5, atol=1e-6)
