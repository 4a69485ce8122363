"""RieM modules that hold the payloads of a `.riem` file: `riem=dict(memory='compressed')`."""

import copy
import pickle

import pytest
import torch
from mmdet.apis import inference_detector, init_detector
from mmengine.config import Config
from mmengine.runner import Runner

from mmriem.core.errors import RiemError
from mmriem.core.file import reading
from mmriem.core.live.compressed import CompressedWeight
from mmriem.engine.checkpoint import read_checkpoint
from mmriem.models import RieMFPN, RieMResNet

SMALL = dict(depth=18, base_channels=8)


@pytest.fixture
def compressed_config(stock_config):
    """`stock_config` with a compressed backbone and neck."""
    config = Config.fromfile(stock_config)
    for part, kind in (('backbone', 'RieMResNet'), ('neck', 'RieMFPN')):
        config.model[part].update(type=f'mmriem.{kind}', riem=dict(memory='compressed', cache='1MB'))
    return config


def held(model):
    return {name: part for name, part in model.named_modules() if isinstance(part, CompressedWeight)}


@pytest.mark.parametrize('representation', ['bilinear', 'lattice', 'sigmoid'])
def test_the_same_detections_as_dense(riem_files, compressed_config, stock_config, coco_data, representation):
    path = riem_files[representation]
    compressed = init_detector(compressed_config, str(path), device='cpu')
    dense = init_detector(str(stock_config), str(path), device='cpu')
    records = {record.view.name for record in reading.read(path).weights}
    found = {name.replace('.riem.', '.') for name, weight in held(compressed).items() if weight.stored}
    assert found == {name for name in records if name.startswith(('backbone', 'neck'))}
    for model in (compressed, copy.deepcopy(compressed), pickle.loads(pickle.dumps(compressed))):
        for index in (0, 1):
            image = str(coco_data / 'images' / f'{index}.png')
            ours, theirs = (inference_detector(which, image).pred_instances for which in (model, dense))
            torch.testing.assert_close(ours.bboxes, theirs.bboxes, rtol=1e-5, atol=1e-4)
            torch.testing.assert_close(ours.scores, theirs.scores, rtol=1e-5, atol=1e-5)
            assert torch.equal(ours.labels, theirs.labels)
    assert all(weight.decoded.held == 0 for weight in held(compressed).values())


def test_a_module_is_filled_when_it_is_built(riem_files):
    path = riem_files['lattice']
    module = RieMResNet(**SMALL, riem=dict(memory='compressed', checkpoint=str(path), prefix='backbone.'))
    dense = RieMResNet(**SMALL, riem=dict(representation='lattice', checkpoint=str(path), prefix='backbone.'))
    for network in (module, dense):
        network.eval()
    x = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for ours, theirs in zip(module(x), dense(x)):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    kept = {name.removesuffix('.riem.weight') for name, weight in held(module).items() if not weight.stored}
    assert kept and all(name.startswith('layer3.1.') for name in kept)  # dense in the file


def test_initialisation_reaches_weights_that_no_file_has_filled():
    module = RieMFPN(in_channels=[16, 32], out_channels=32, num_outs=2, riem=dict(memory='compressed'))
    weight = held(module)['lateral_convs.0.conv.riem.weight']
    before = weight.made().clone()
    module.init_weights()
    assert not torch.equal(weight.made(), before)


def test_options_that_do_not_go_with_it_are_refused():
    for riem, said in (
        (dict(memory='compressed', ratio=0.2), 'expected keys among cache, include, exclude.*found ratio'),
        (dict(cache='32MB'), 'found cache'),
        (dict(memory='small'), "expected a memory among dense, compressed, found 'small'"),
    ):
        with pytest.raises(RiemError, match=said):
            RieMResNet(**SMALL, riem=riem)


def test_an_ordinary_checkpoint_and_training_are_refused(compressed_config, trained, riem_files, tmp_path):
    weights = tmp_path / 'weights.pth'
    torch.save(read_checkpoint(trained).state_dict, weights)
    with pytest.raises(RiemError, match="of another checkpoint, which memory='compressed' cannot hold"):
        RieMResNet(**SMALL, riem=dict(memory='compressed', checkpoint=str(weights), prefix='backbone.'))
    compressed_config.load_from = str(riem_files['lattice'])
    compressed_config.work_dir, compressed_config.log_level = str(tmp_path), 'ERROR'
    compressed_config.experiment_name = 'training_of_compressed_weights'
    with pytest.raises(RiemError, match=r"memory='compressed' cannot be; call eval\(\) and torch.no_grad"):
        Runner.from_cfg(compressed_config).train()
