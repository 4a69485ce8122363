"""`mmriem.compress`, `save` and `load`, with and without the packages around torch."""

import json
import os
import subprocess
import sys
import venv
from importlib import metadata
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement
from torch import nn

import mmriem
from mmriem import image_probe
from mmriem.classification import LeNet5, VisionTransformer
from mmriem.core.errors import RiemError
from mmriem.core.images.style_search import DEFAULT
from mmriem.core.images.synthesis import MOST_STEPS
from mmriem.image_probe import InputFormat, procedural_probe


def network(channels=3):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(channels, 24, 3), nn.BatchNorm2d(24), nn.ReLU(), nn.Conv2d(24, 24, 3), nn.Flatten(), nn.Linear(384, 9)
    )


def states(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def test_three_lines(tmp_path):
    model = network().train()
    model[1].eval()
    before = states(model)
    compressed = mmriem.compress(model, bits=6.0, input_size=(3, 8, 8), threads=1, dataset_meta={'classes': ['a']})
    assert mmriem.save(compressed, tmp_path / 'net.riem') == (tmp_path / 'net.riem').stat().st_size
    loaded = mmriem.load(network(), tmp_path / 'net.riem').eval()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert [module.training for module in model] == [True, False, True, True, True, True]
    assert compressed.report['totals']['bits_per_weight'] <= 6 and compressed.archive.dataset_meta == {'classes': ['a']}
    images = torch.randn(4, 3, 8, 8)
    wanted, found = model.eval()(images), loaded(images)
    assert (wanted - found).norm() < 0.1 * wanted.norm()
    said = {'kind': 'procedural', 'seed': 0, 'size': [8, 8], 'count': 256}
    assert compressed.archive.settings['images'] == {**said, 'style': DEFAULT.describe()}


def seasoned(channels=3):
    """The network with norms that have seen something."""
    model = network(channels)
    model[1].running_mean.normal_(generator=torch.Generator().manual_seed(1))
    return model


@pytest.mark.parametrize('channels', [1, 3])
def test_images_are_optimised_for_norms_with_statistics(channels):
    told, shares = dict(bits=6.0, input_size=(channels, 8, 8), threads=1), []
    made, again, plain = (
        mmriem.compress(seasoned(channels), **told, synthesis=steps, on_progress=progress)
        for steps, progress in ((2, lambda share, name: shares.append(share)), (2, None), (0, None))
    )
    assert made.archive.to_bytes() == again.archive.to_bytes() != plain.archive.to_bytes()
    said = made.archive.settings['images']
    assert (said.pop('kind'), said.pop('steps')) == ('synthetic', 2)
    assert {**said, 'kind': 'procedural'} == plain.archive.settings['images']
    assert shares == sorted(shares) and shares[-1] == 1.0


def test_images_are_optimised_by_default_where_norms_hold_statistics(monkeypatch):
    asked = []
    monkeypatch.setattr(image_probe, 'synthesise', lambda *args, **options: asked.append(args[4]) or args[1])
    mmriem.compress(seasoned(), bits=6.0, input_size=(3, 8, 8), synthesis=0)
    mmriem.compress(network(), bits=6.0, input_size=(3, 8, 8))
    assert not asked
    mmriem.compress(seasoned(), bits=6.0, input_size=(3, 8, 8))
    assert asked == [MOST_STEPS]


@pytest.mark.parametrize('channels', [1, 3])
def test_norms_and_biases_are_tuned_on_other_images(channels):
    model = nn.Sequential(network(channels)[:4], nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(384, 9)).eval()
    settings = dict(bits=4.0, input_size=(channels, 64, 64), mean=(0.5,) * channels, std=(0.2,) * channels)
    plain, tuned = (mmriem.compress(model, **settings, tuning=steps) for steps in (0, 3))
    assert plain.report['totals']['tuning'] is None and tuned.report['totals']['tuning']['before'] > 0
    assert plain.archive.settings['images'] == tuned.archive.settings['images']
    probe = procedural_probe(InputFormat.told((channels, 64, 64), settings['mean'], settings['std']), 5, 8)
    others = probe.others(3)
    assert (others.images, others.batch, others.describe()['seed']) == (64, 16, 6)
    for images in (probe._images, others._images):
        assert images.shape[1:] == (channels, 64, 64) and -2.6 < images.min() < images.max() < 2.6


@pytest.mark.parametrize(
    ('model', 'settings'),
    [
        (network(1), dict(input_size=(1, 8, 8))),
        (network(), dict(inputs=torch.randn(6, 3, 8, 8))),
        (network(), dict(metric='identity')),
        (network(), dict(input_size=(3, 8, 8), mean=(0.0,) * 3, std=(1.0,) * 3, exclude=['0.*'], recalibration=False)),
        (LeNet5(), dict(input_size=(1, 28, 28), representation='bilinear')),
        (
            nn.Sequential(nn.Embedding(50, 16), nn.Flatten(), nn.Linear(64, 20)),
            dict(inputs=torch.arange(40).view(10, 4)),
        ),
    ],
)
def test_ways_to_say_what_a_network_takes(model, settings, tmp_path):
    compressed = mmriem.compress(model, ratio=0.3, threads=1, **settings)
    mmriem.save(compressed, tmp_path / 'net.riem')
    assert compressed.report['totals']['ratio'] <= 0.3
    assert mmriem.load(model, tmp_path / 'net.riem') is model


def test_outputs_of_any_structure():
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = network()

        def forward(self, x):
            return {'logits': self.net(x), 'more': (x, torch.arange(3))}

    assert mmriem.compress(Both(), bits=4.0, input_size=(3, 8, 8), threads=1).report['weights']


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        ({}, r'expected input_size=\(3, 224, 224\) or the like, inputs=.* found none'),
        (dict(input_size=(3, 9, 9)), r'Sequential: expected it to run on .*\[9, 9\].* RuntimeError: mat1 and mat2'),
        (
            dict(inputs=torch.zeros(2, 5, 8, 8)),
            'Sequential: expected it to run on .* give the input_size or the',
        ),
        (dict(input_size=(4, 8, 8)), r'expected \(channels, height, width\) with 1 or 3 channels, found \(4, 8, 8\)'),
        (dict(input_size=(8, 8)), 'input_size: expected'),
        (dict(input_size=(3, 8, 8), mean=(0, 0)), 'mean: expected 3 numbers, one for each channel, found 2'),
        (dict(input_size=(3, 8, 8), inputs=torch.zeros(1, 3, 8, 8)), 'expected input_size or inputs, found both'),
        (dict(input_size=(3, 8, 8), metric='identity'), "input_size: expected with metric='pullback'"),
        (dict(metric='fisher'), "expected 'pullback' or 'identity', found 'fisher'"),
        (dict(metric='identity', bit=2), 'expected options among representation, ratio, .*, found bit'),
        (dict(metric='identity', device='cuda:77'), "'cuda:77' is not available here .*; give device='cpu'"),
        (dict(metric='identity', device='gpu'), "device: 'gpu' is not available here"),
        (
            dict(metric='identity', threads=0),
            'threads: expected .* or None for all cores, found 0',
        ),
        (dict(metric='identity', threads='2'), "threads: expected .* found '2'"),
        (dict(inputs=[[1.0]]), 'inputs: expected a tensor .* found list'),
        (dict(input_size='8x8'), "input_size: expected .* found '8x8'"),
        (dict(input_size=8), 'input_size: expected .* found 8;'),
        (dict(input_size=(3, 8.5, 8)), 'input_size: expected'),
        (dict(input_size=(3, 0, 8)), 'input_size: expected'),
        (dict(input_size=(3, 8, 8), mean='grey'), "mean: expected 3 numbers, one for each channel, found 'grey'"),
        (dict(inputs=torch.zeros(0, 3, 8, 8)), 'probe: expected inputs'),
        (dict(size='5kB'), "size: expected a number of bytes, found '5kB'"),
        (dict(bits='2'), "bits: expected a number, found '2'"),
        (dict(ratio=[0.1]), r'ratio: expected a number, found \[0.1\]'),
        (dict(bits=True), 'bits: expected a number, found True'),
        (dict(include='0.*'), r"include: expected a list of patterns, found '0.\*'; give \['0.\*'\]"),
        (dict(exclude=[3]), r'exclude: expected a list of patterns, found \[3\]'),
        (dict(seed=0.5), 'seed: expected a whole number, found 0.5'),
        (dict(tuning='none'), "tuning: expected a whole number, found 'none'"),
        (dict(trellis='no'), "trellis: expected True or False, found 'no'"),
        (dict(metric='identity', tuning=3), 'tuning: expected images .* leave tuning out$'),
        (dict(inputs=torch.full((1, 3, 8, 8), torch.nan)), 'inputs: expected finite values, found NaN'),
    ],
)
def test_what_will_not_do_is_one_error(settings, message):
    with pytest.raises(RiemError, match=message) as caught:
        mmriem.compress(network(), **settings)
    assert '\n' not in str(caught.value) and '--' not in str(caught.value)


@pytest.mark.parametrize(
    ('call', 'message'),
    [
        (
            lambda: mmriem.compress(network().state_dict(), bits=4),
            'compress: expected a torch.nn.Module',
        ),
        (lambda: mmriem.compress('net.pth', bits=4), "compress: expected a torch.nn.Module as model, found 'net.pth'"),
        (lambda: mmriem.load(network().state_dict(), 'net.riem'), 'load: expected a torch.nn.Module .* build the'),
        (lambda: mmriem.load('net.riem', network()), "load: expected a torch.nn.Module as model, found 'net.riem'"),
        (lambda: mmriem.load(network(), network()), 'load: expected the path of a .riem file, found Sequential'),
        (lambda: mmriem.save(network(), 'net.riem'), 'save: expected what mmriem.compress gives, found Sequential'),
        (lambda: mmriem.save({}, 'net.riem'), 'save: expected what mmriem.compress gives, found dict of 0 entries'),
    ],
)
def test_what_a_call_does_not_take(call, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RiemError, match=message) as caught:
        call()
    assert '\n' not in str(caught.value) and '--' not in str(caught.value) and not list(tmp_path.iterdir())


def collapsed(share):
    """A layer that is not needed: weight decay has shrunk it and the scale of its norm to that share."""
    torch.manual_seed(0)
    hidden = nn.Sequential(nn.Linear(32, 40, bias=False), nn.BatchNorm1d(40), nn.ReLU())
    with torch.no_grad():
        hidden[0].weight.mul_(share)
        hidden[1].weight.mul_(share)
    return nn.Sequential(nn.Linear(32, 32), nn.ReLU(), *hidden, nn.Linear(40, 32))


@pytest.mark.parametrize('share', [1e-8, 1e-12, 1e-15, 1e-18, 1e-22, 1e-30, 1e-40])
def test_a_layer_that_collapsed_is_compressed(share):
    inputs = torch.randn(64, 32, generator=torch.Generator().manual_seed(0))
    compressed = mmriem.compress(collapsed(share), bits=8.0, inputs=inputs, threads=1)
    assert all(tensor.isfinite().all() for tensor in compressed.archive.decode().values())
    first = compressed.archive.decode()['0.weight'] - collapsed(share)[0].weight
    assert first.std() < 0.1 * collapsed(share)[0].weight.std()


@pytest.mark.parametrize('scale', [1e-30, 1e-20, 1e20, 1e30])
def test_inputs_of_any_size_are_taken(scale):
    torch.manual_seed(0)
    model, inputs = nn.Sequential(nn.Linear(32, 40), nn.ReLU(), nn.Linear(40, 32)), scale * torch.randn(64, 32)
    compressed = mmriem.compress(model, bits=6.0, inputs=inputs, threads=1)
    assert compressed.report['totals']['bits_per_weight'] <= 6
    assert all(weight['metric'] == 'inputs' for weight in compressed.report['weights'])


def test_files_of_other_networks_and_names(tmp_path):
    compressed = mmriem.compress(network(), metric='identity', threads=1)
    assert repr(compressed) == (
        f'<Compressed: 3 weights in {compressed.report["totals"]["bytes"]:,} bytes, '
        f'{1 / compressed.report["totals"]["ratio"]:.1f} times smaller than fp32>'
    )
    with pytest.raises(RiemError, match=r'absent\.riem: expected a \.riem file, found: No such file or directory$'):
        mmriem.load(network(), tmp_path / 'absent.riem')
    with pytest.raises(RiemError, match=r'net\.riem: expected a folder .* found: No such file or directory$'):
        mmriem.save(compressed, tmp_path / 'absent' / 'net.riem')
    with pytest.raises(RiemError, match=r'net\.pth: expected a name that ends in \.riem'):
        mmriem.save(compressed, tmp_path / 'net.pth')
    mmriem.save(compressed, tmp_path / 'net.riem')
    with pytest.raises(RiemError, match='expected no file of that name, found one; force=True replaces it'):
        mmriem.save(compressed, tmp_path / 'net.riem')
    mmriem.save(compressed, tmp_path / 'net.riem', force=True)
    other = LeNet5()
    before = states(other)
    with pytest.raises(RiemError, match='do not belong together'):
        mmriem.load(other, tmp_path / 'net.riem')
    assert all(torch.equal(tensor, before[name]) for name, tensor in other.state_dict().items())


def test_the_source_is_the_state_dict():
    first, again, other = network(), network(), network()
    other[3].bias.data[0] += 1
    digests = [
        mmriem.compress(net, metric='identity', threads=1).archive.source.sha256 for net in (first, again, other)
    ]
    assert digests[0] == digests[1] != digests[2]


def test_a_model_of_timm(tmp_path):
    timm = pytest.importorskip('timm', reason='timm is an optional extra: pip install timm')
    model = timm.create_model('test_vit', num_classes=7)  # it tells its input size itself
    compressed = mmriem.compress(model, bits=3.0, threads=1)
    mmriem.save(compressed, tmp_path / 'timm.riem')
    loaded = mmriem.load(timm.create_model('test_vit', num_classes=7), tmp_path / 'timm.riem').eval()
    size = model.pretrained_cfg['input_size']
    assert compressed.archive.settings['images']['size'] == [size[2], size[1]]
    assert loaded(torch.zeros(1, *size)).shape == (1, 7)


def test_attention_and_tables_are_compressed_too():
    vit = VisionTransformer(16, 4, 48, 1, 4, classes=10)
    report = mmriem.compress(vit, bits=4.0, input_size=(3, 16, 16), threads=1).report
    assert {'pos_embed', 'patch_embed.proj.weight', 'blocks.0.attn.qkv.weight'} <= {
        w['name'] for w in report['weights']
    }


# ---- without mm*


def requirements(*names):
    """Installed distributions that these need, themselves among them."""
    found, wanted = {}, [*names]
    while wanted:
        distribution = metadata.distribution(wanted.pop())
        if distribution.metadata['Name'] not in found:
            found[distribution.metadata['Name']] = distribution
            needs = map(Requirement, distribution.requires or [])
            wanted += [need.name for need in needs if need.marker is None or need.marker.evaluate({'extra': ''})]
    return found.values()


PROGRAM = """
import importlib.util, json, sys
import torch
import mmriem

found = [name for name in ('mmengine', 'mmcv', 'mmdet', 'cv2', 'rich', 'sklearn') if importlib.util.find_spec(name)]
net = torch.nn.Sequential(torch.nn.Conv2d(3, 24, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(864, 10))
compressed = mmriem.compress(net, bits=4.0, input_size=(3, 8, 8))
mmriem.save(compressed, sys.argv[1])
mmriem.load(net, sys.argv[1])
from mmriem.classification import resnet20
print(json.dumps({'found': found, 'bits': compressed.report['totals']['bits_per_weight'], 'file': mmriem.__file__}))
"""


def test_torch_alone_is_enough(tmp_path):
    """In a virtual environment with torch, numpy, safetensors, constriction and what these need, linked from here."""
    venv.create(tmp_path / 'venv', symlinks=True, with_pip=False)
    site = next((tmp_path / 'venv').glob('lib/python*/site-packages'))
    for distribution in requirements('torch', 'numpy', 'safetensors', 'constriction'):
        for top in {file.parts[0] for file in distribution.files or []} - {'..', '__pycache__'}:
            source = Path(distribution.locate_file(top))
            if source.exists() and not os.path.lexists(site / top):
                (site / top).symlink_to(source)
    (site / 'mmriem').symlink_to(Path(mmriem.__file__).parent)
    environment = {key: value for key, value in os.environ.items() if not key.startswith('PYTHON')}
    done = subprocess.run(
        [tmp_path / 'venv/bin/python', '-c', PROGRAM, tmp_path / 'net.riem'],
        capture_output=True,
        text=True,
        env=environment,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told['found'] == [] and told['bits'] <= 4 and str(site) in told['file']
    assert sys.prefix != str(tmp_path / 'venv') and (tmp_path / 'net.riem').stat().st_size < 10_000
