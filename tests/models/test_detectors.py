"""Whole detectors with RieM modules, built, loaded, evaluated and trained as a user does it."""

import json
import re
import subprocess
import sys

import pytest
import torch
from mmdet.apis import DetInferencer, inference_detector, init_detector
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.runner import Runner

from mmriem.core.file import reading
from mmriem.core.live.states import WeightStates
from mmriem.engine.config import load_strictly

REPRESENTATIONS = ('bilinear', 'lattice', 'sigmoid')
RATES = {'bilinear': dict(ratio=0.5), 'lattice': dict(representation='lattice', ratio=0.2)}


def image():
    return torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def outputs(detector):
    """Class scores and boxes of every level."""
    return [level for kind in detector.bbox_head(detector.extract_feat(image())) for level in kind]


def logged(work_dir, name):
    """The values that the last run under a work dir logged under a name."""
    text = sorted(work_dir.glob('*/*.log'))[-1].read_text()
    return [float(value) for value in re.findall(rf' {name}: (-?[0-9.]+)', text)]


def state_key(name, state):
    owner, _, attribute = name.rpartition('.')
    return f'{owner}.riem.{attribute}.{state}'


@pytest.mark.parametrize('representation', REPRESENTATIONS)
def test_live_and_drop_in_compute_the_same(representation, riem_files, stock_config, live_config):
    """Also the `sigmoid` file in a config of `bilinear` states."""
    path = riem_files[representation]
    live, dense = (init_detector(str(c), str(path), device='cpu') for c in (live_config, stock_config))
    assert live.dataset_meta == dense.dataset_meta
    with torch.no_grad():
        for found, expected in zip(outputs(live), outputs(dense)):
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('representation', REPRESENTATIONS)
def test_states_of_the_file_become_parameters(representation, riem_files, live_config):
    archive = reading.read(riem_files[representation])
    model = init_detector(str(live_config), str(riem_files[representation]), device='cpu')
    state_dict, expected = model.state_dict(), archive.decode()
    records = {record.view.name: record for record in archive.weights}
    assert any(name.startswith('neck.') for name in records) and any('bbox_head' in name for name in records)
    for name, tensor in expected.items():
        if not name.startswith(('backbone.', 'neck.')) or name in state_dict:
            assert torch.equal(state_dict[name], tensor)
        elif name in records:
            for state, value in records[name].encoded.states().items():
                assert torch.equal(state_dict[state_key(name, state)], value)
        else:
            assert torch.equal(state_dict[state_key(name, 'dense')], tensor)
    assert state_key('backbone.layer3.1.conv1.weight', 'dense') in state_dict
    held = {name for name, module in model.named_modules() if isinstance(module, WeightStates)}
    assert {f'{name}.values' for name in held} <= {name for name, _ in model.named_parameters()}


def test_evaluation_gives_the_same_map(call_here, tools, riem_files, stock_config, live_config, tmp_path):
    found = []
    for config in (stock_config, live_config):
        work_dir = tmp_path / config.stem
        assert call_here(tools / 'test.py', config, riem_files['sigmoid'], '--work-dir', work_dir) is None
        results = sorted(work_dir.glob('*/*.json'))[-1].read_text()
        found.append({key: value for key, value in json.loads(results).items() if 'mAP' in key})
    assert found[0] == found[1] and found[0]['coco/bbox_mAP'] > 0.1


def test_a_config_needs_no_imports(riem_files, live_config):
    code = (
        'from mmdet.apis import init_detector; '
        f'model = init_detector({str(live_config)!r}, {str(riem_files["bilinear"])!r}, device="cpu"); '
        'conv = model.backbone.layer4[0].conv1; print(type(conv).__name__, *conv.state_dict())'
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-3:] == ['RieMConv2d', 'riem.weight.q', 'riem.weight.p']


def test_the_same_boxes_in_the_api_of_mmdet(riem_files, stock_config, live_config, coco_data, tmp_path):
    """`inference_detector` and `DetInferencer`, of the stock detector and of the one that holds states."""
    image, found = str(coco_data / 'images' / '0.png'), []
    for config in (stock_config, live_config):
        weights = str(riem_files['lattice'])
        boxes = inference_detector(init_detector(str(config), weights, device='cpu'), image).pred_instances
        inferencer = DetInferencer(model=str(config), weights=weights, device='cpu', show_progress=False)
        told = inferencer(image, out_dir=str(tmp_path / config.stem), pred_score_thr=0.0)['predictions'][0]
        torch.testing.assert_close(torch.tensor(told['bboxes']), boxes.bboxes, rtol=1e-4, atol=1e-3)
        assert (tmp_path / config.stem / 'vis' / '0.png').is_file()
        found.append(boxes)
    assert len(found[0]) > 2 and torch.equal(found[0].labels, found[1].labels)
    torch.testing.assert_close(found[0].bboxes, found[1].bboxes, rtol=1e-4, atol=1e-3)


def test_pretrained_states_of_a_stock_backbone(riem_files, stock_config):
    """`init_cfg` reads a `.riem` file for a module that knows nothing of states."""
    config = Config.fromfile(stock_config)
    start = dict(type='Pretrained', checkpoint=str(riem_files['lattice']), prefix='backbone.')
    config.model.backbone.init_cfg = start
    backbone = MODELS.build(config.model.backbone)
    backbone.init_weights()
    expected = reading.read(riem_files['lattice']).decode()
    for key, tensor in backbone.state_dict().items():
        assert key.endswith('num_batches_tracked') or torch.equal(tensor, expected[f'backbone.{key}'])


@pytest.mark.parametrize('representation', REPRESENTATIONS)
def test_fine_tuning(representation, call_here, tools, riem_files, stock_config, live_config, tmp_path):
    """Starts where the file ends, moves the states, resumes, and its checkpoints are evaluated."""
    path = riem_files[representation]
    first_losses = []
    for config in (stock_config, live_config):
        named = ['--cfg-options', f'load_from={path}', f'experiment_name={representation}_{config.stem}']
        assert call_here(tools / 'train.py', config, '--work-dir', tmp_path / config.stem, *named) is None
        first_losses.append(logged(tmp_path / config.stem, 'loss')[0])
    assert abs(first_losses[0] - first_losses[1]) <= 1.01e-4  # four decimals are logged

    work_dir = tmp_path / live_config.stem
    trained = torch.load(work_dir / 'epoch_1.pth', weights_only=False)['state_dict']
    for record in reading.read(path).weights:
        if not record.view.name.startswith('bbox_head'):
            for state, value in record.encoded.states().items():
                found = trained[state_key(record.view.name, state)]
                assert found.shape == value.shape and torch.equal(found, value) == (state == 'z')

    longer = ['--cfg-options', 'train_cfg.max_epochs=2', f'experiment_name={representation}_resumed']
    assert call_here(tools / 'train.py', live_config, '--work-dir', work_dir, '--resume', *longer) is None
    assert logged(work_dir, 'loss')[-1] < 1.2 * first_losses[1]

    other = ['--cfg-options', 'model.backbone.riem.ratio=0.8', 'model.neck.riem.representation=sigmoid']
    last = work_dir / 'epoch_2.pth'
    assert call_here(tools / 'test.py', live_config, last, '--work-dir', tmp_path / 'test', *other) is None
    results = sorted((tmp_path / 'test').glob('*/*.json'))[-1].read_text()
    assert json.loads(results)['coco/bbox_mAP'] > 0.1


@pytest.mark.parametrize('representation', ['bilinear', 'lattice'])
def test_an_ordinary_checkpoint(representation, call_here, tools, live_config, stock_config, trained, tmp_path, capfd):
    """It is fitted once, and detects nearly as well; the same in the API of mmdet."""
    parts = ('model.backbone.riem', 'model.neck.riem')
    options = [f'{part}.{name}={value}' for part in parts for name, value in RATES[representation].items()]
    for config, extra in ((stock_config, []), (live_config, ['--cfg-options', *options])):
        assert call_here(tools / 'test.py', config, trained, '--work-dir', tmp_path / config.stem, *extra) is None
    told = ''.join(capfd.readouterr())
    assert told.count('of an ordinary checkpoint are fitted') == 2  # backbone and neck, though it is loaded twice
    found = [
        json.loads(sorted((tmp_path / config.stem).glob('*/*.json'))[-1].read_text())['coco/bbox_mAP']
        for config in (stock_config, live_config)
    ]
    assert found[1] > 0.8 * found[0] > 0.1


def test_a_file_of_another_model(call_here, tools, live_config, riem_files, tmp_path):
    wide = ['--cfg-options', 'model.backbone.base_channels=16', 'model.neck.in_channels=[16,32,64,128]']
    error = call_here(tools / 'test.py', live_config, riem_files['bilinear'], '--work-dir', tmp_path, *wide)
    assert 'does not fit the model of the config' in error and 'size mismatch for backbone.conv1.weight' in error


def test_averaged_weights(riem_files, live_config, tmp_path):
    """EMAHook copies the model before loading and swaps states through `.data` around an evaluation."""
    config = Config.fromfile(live_config)
    config.merge_from_dict(
        dict(
            val_cfg=dict(type='ValLoop'),
            val_dataloader=config.test_dataloader,
            val_evaluator=config.test_evaluator,
            work_dir=str(tmp_path),
            experiment_name='averaged',
            load_from=str(riem_files['sigmoid']),
            custom_hooks=[dict(type='EMAHook', momentum=0.5)],
        )
    )
    load_strictly(config)
    runner = Runner.from_cfg(config)
    runner.train()
    assert logged(tmp_path, 'coco/bbox_mAP')[-1] > 0.1
    saved = torch.load(tmp_path / 'epoch_1.pth', weights_only=False)
    own, averaged = runner.model.state_dict(), saved['state_dict']
    record = next(r for r in reading.read(riem_files['sigmoid']).weights if 'layer4' in r.view.name)
    starts = {state_key(record.view.name, state): value for state, value in record.encoded.states().items()}
    moved = [
        torch.cat([(tensors[key] - start).flatten() for key, start in starts.items()]) for tensors in (own, averaged)
    ]
    assert 0 < moved[1].norm() < moved[0].norm()
