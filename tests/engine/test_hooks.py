import pytest
import torch
from mmengine.config import Config
from mmengine.runner import CheckpointLoader, Runner

from mmriem.core.errors import RiemError
from mmriem.core.file import reading
from mmriem.engine import StrictLoadHook, read_pth_safely
from mmriem.engine.config import load_strictly


@pytest.fixture
def config(tiny_config, tmp_path, request):
    """The tiny config with a work dir and a name of its own, and the strict hook."""
    config = Config.fromfile(tiny_config)
    config.merge_from_dict(dict(work_dir=str(tmp_path / 'work'), experiment_name=request.node.name))
    load_strictly(config)
    return config


def test_fitting_file_is_evaluated(config, riem_file):
    config.load_from = str(riem_file)
    runner = Runner.from_cfg(config)
    assert [type(hook) for hook in runner.hooks].count(StrictLoadHook) == 1
    assert runner.test()['coco/bbox_mAP'] > 0.3


@pytest.mark.parametrize('source', ['riem_file', 'runner_checkpoint'])
def test_other_config_is_an_error(config, source, request, monkeypatch):
    monkeypatch.setattr(CheckpointLoader, '_schemes', CheckpointLoader._schemes.copy())
    read_pth_safely()
    config.load_from = str(request.getfixturevalue(source))
    config.model.bbox_head.stacked_convs = 2
    with pytest.raises(RiemError, match=r'missing bbox_head\.cls_convs\.1\.conv\.weight'):
        Runner.from_cfg(config).test()


def test_without_the_hook_the_runner_only_warns_of_an_ordinary_checkpoint(config, runner_checkpoint, monkeypatch):
    monkeypatch.setattr(CheckpointLoader, '_schemes', CheckpointLoader._schemes.copy())
    read_pth_safely()
    config.load_from = str(runner_checkpoint)
    del config.default_hooks.strict_load
    config.model.bbox_head.stacked_convs = 2
    assert Runner.from_cfg(config).test()['coco/bbox_mAP'] < 0.1


def test_plain_state_dict_with_ema(config, riem_file, tmp_path):
    """EMAHook takes its copy from the same checkpoint."""
    config.load_from = str(tmp_path / 'plain.pth')
    decoded = reading.read(riem_file).decode()
    torch.save({'state_dict': {name: tensor.clone() for name, tensor in decoded.items()}}, config.load_from)
    config.custom_hooks = [dict(type='EMAHook')]
    runner = Runner.from_cfg(config)
    assert runner.test()['coco/bbox_mAP'] > 0.3
    assert torch.equal(runner.model.backbone.conv1.weight.cpu(), decoded['backbone.conv1.weight'])


def test_resuming_from_weights(config, riem_file):
    config.load_from, config.resume = str(riem_file), True
    with pytest.raises(RiemError, match='load_from'):
        Runner.from_cfg(config).train()


def test_fine_tuning_a_compressed_detector(config, riem_file):
    config.load_from = str(riem_file)
    runner = Runner.from_cfg(config)
    runner.train()
    assert runner.iter == 2
