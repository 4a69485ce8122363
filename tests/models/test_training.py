"""Training of whole detectors that hold states, in mmdet's flow, and the files that are made of them afterwards."""

import json
import socket

import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner

from mmriem.core.file import reading
from mmriem.core.live.states import WeightStates
from mmriem.engine.config import load_strictly

WHOLE = """
_base_ = {base!r}
model = dict(type='mmriem.RieMRetinaNet', riem=dict(representation={representation!r}, {options}))
optim_wrapper = dict(optimizer=dict(lr=1e-3), paramwise_cfg=dict(custom_keys=dict(riem=dict(lr_mult={factor}))))
"""
KINDS = {
    'steps': ('lattice', "bits=5, integers='frozen'", 0.1),
    'integers': ('lattice', "bits=5, integers='straight_through'", 20.0),
    'sigmoid': ('sigmoid', 'ratio=0.4, effort=0.1', 0.1),
    'bilinear': ('bilinear', 'ratio=0.4', 0.1),
}


@pytest.fixture
def whole_config(stock_config, tmp_path):
    """Writes the config of a detector that holds states as a whole."""

    def write(kind):
        representation, options, factor = KINDS[kind]
        path = tmp_path / f'{kind}.py'
        path.write_text(
            WHOLE.format(base=str(stock_config), representation=representation, options=options, factor=factor)
        )
        return path

    return write


def map_of(work_dir):
    return json.loads(sorted(work_dir.glob('*/*.json'))[-1].read_text())['coco/bbox_mAP']


@pytest.mark.parametrize('kind', KINDS)
def test_from_an_ordinary_checkpoint_over_training_to_a_file(
    kind, call_here, tools, whole_config, stock_config, trained, tmp_path
):
    """The file is as large as one made without training, and the stock detector loads it."""
    config = whole_config(kind)
    work_dir = tmp_path / 'work'
    named = ['--cfg-options', f'load_from={trained}', f'experiment_name=whole_{kind}']
    assert call_here(tools / 'train.py', config, '--work-dir', work_dir, *named) is None
    assert call_here(tools / 'compress.py', config, work_dir / 'epoch_1.pth', '--out', tmp_path / 'after.riem') is None
    for name, file in ((config, tmp_path / 'after.riem'), (stock_config, tmp_path / 'after.riem')):
        assert call_here(tools / 'test.py', name, file, '--work-dir', tmp_path / f'test_{name.stem}') is None
    found = [map_of(tmp_path / f'test_{name.stem}') for name in (config, stock_config)]
    assert found[0] == found[1] > 0.1
    archive = reading.read(tmp_path / 'after.riem')
    assert {record.encoded.name for record in archive.weights} == {KINDS[kind][0]}
    bits = sum(record.encoded.payload_bits() for record in archive.weights)
    budget = 5 if kind in ('steps', 'integers') else 0.4 * 32
    assert bits <= 1.06 * budget * sum(record.view.to_matrix(record.decode()).numel() for record in archive.weights)


def test_a_budget_compresses_a_trained_model_anew(call_here, tools, live_config, riem_files, tmp_path):
    """And a config of a RieM model compresses an ordinary checkpoint as the stock config does."""
    named = ['--cfg-options', f'load_from={riem_files["lattice"]}', 'experiment_name=anew']
    assert call_here(tools / 'train.py', live_config, '--work-dir', tmp_path, *named) is None
    small = tmp_path / 'small.riem'
    flags = ['--bits', 3, '--metric', 'identity', '--out', small]
    assert call_here(tools / 'compress.py', live_config, tmp_path / 'epoch_1.pth', *flags) is None
    report = json.loads(small.with_suffix('.json').read_text())
    assert 2.9 < report['totals']['bits_per_weight'] <= 3
    assert 'bbox_head' in ''.join(record.view.name for record in reading.read(small).weights)


def test_an_ordinary_checkpoint_with_the_config_of_a_riem_model(
    call_here, tools, live_config, stock_config, trained, tmp_path
):
    files = [tmp_path / f'{config.stem}.riem' for config in (live_config, stock_config)]
    for config, file in zip((live_config, stock_config), files):
        flags = ['--bits', 3, '--metric', 'identity', '--out', file]
        assert call_here(tools / 'compress.py', config, trained, *flags) is None
    assert files[0].read_bytes() == files[1].read_bytes()


def runner_of(path, work_dir, **options):
    config = Config.fromfile(path)
    config.merge_from_dict(dict(work_dir=str(work_dir), experiment_name=work_dir.name, log_level='WARNING', **options))
    load_strictly(config)
    return Runner.from_cfg(config)


@pytest.mark.parametrize('kind', ['steps', 'integers', 'sigmoid'])
def test_from_scratch_with_averaged_buffers(kind, whole_config, tmp_path):
    """`update_buffers` averages what the state dict holds, as the configs of YOLOX and RTMDet ask for."""
    hooks = [dict(type='EMAHook', momentum=0.5, update_buffers=True)]
    runner = runner_of(whole_config(kind), tmp_path / f'scratch_{kind}', custom_hooks=hooks)
    runner.model.init_weights()
    before = {key: value.clone() for key, value in runner.model.state_dict().items()}
    runner.train()
    own = runner.model.state_dict()
    saved = torch.load(tmp_path / f'scratch_{kind}' / 'epoch_1.pth', weights_only=False)['state_dict']
    name = 'backbone.layer4.0.conv1.riem.weight.' + {'steps': 'row', 'integers': 'z', 'sigmoid': 'q'}[kind]
    moved = [(tensors[name] - before[name]).norm() for tensors in (own, saved)]
    assert 0 < moved[1] < moved[0]
    if kind == 'steps':
        assert torch.equal(own[name.replace('row', 'z')], before[name.replace('row', 'z')])


@pytest.mark.parametrize('kind', ['steps', 'sigmoid'])
def test_autocast(kind, whole_config, riem_files):
    """As `AmpOptimWrapper` runs the loss, which MMEngine has for accelerators only; states keep their precision."""
    from mmdet.apis import init_detector

    file = riem_files['lattice' if kind == 'steps' else kind]
    model = init_detector(str(whole_config(kind)), str(file), device='cpu').train()
    image = torch.randn(1, 3, 64, 64)
    with torch.autocast('cpu', torch.bfloat16):
        outputs = model.bbox_head(model.extract_feat(image))
        total = sum(level.float().square().sum() for kind_ in outputs for level in kind_)
    total.backward()
    for states in (module for module in model.modules() if isinstance(module, WeightStates)):
        assert states.values.dtype == torch.float32 and states.values.grad.isfinite().all()


SAME = """
import torch
from mmengine.dist import all_gather, is_main_process
from mmengine.hooks import Hook
from mmengine.registry import HOOKS


@HOOKS.register_module()
class Same(Hook):
    def after_train(self, runner):
        found = all_gather(torch.cat([x.detach().float().flatten() for x in runner.model.module.state_dict().values()]))
        if is_main_process():
            print(f'the same in {len(found)} processes: {all(torch.equal(x, found[0]) for x in found)}')
"""


def test_two_processes(call, tools, whole_config, trained, tmp_path):
    """Each fits the same states to an ordinary checkpoint after the model is wrapped, and holds the same in the end."""
    config = whole_config('steps')
    (tmp_path / 'same.py').write_text(SAME)
    # batch statistics are those of each process
    text = (
        "custom_imports = dict(imports=['same'])\ncustom_hooks = [dict(type='Same')]\nfind_unused_parameters = True\n"
    )
    text += 'model.update(backbone=dict(norm_eval=True))\n'
    config.write_text(config.read_text() + text)
    flags = ['--work-dir', tmp_path / 'two', '--cfg-options', f'load_from={trained}']
    done = call(
        tools / 'dist_train.sh', config, 2, *flags, cwd=tmp_path, PYTHONPATH=str(tmp_path), PORT=str(free_port())
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert 'the same in 2 processes: True' in done.stdout


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        return probe.getsockname()[1]
