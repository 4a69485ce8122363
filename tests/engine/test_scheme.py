import subprocess
import sys

import pytest
import torch
from mmdet.apis import init_detector as mmdet_init_detector
from mmengine.config import Config
from mmengine.runner import CheckpointLoader
from torch import nn

from mmriem.core.errors import RiemError
from mmriem.core.file import reading
from mmriem.engine import read_pth_safely


@pytest.fixture(autouse=True)
def schemes(monkeypatch):
    """What a test registers ends with it."""
    monkeypatch.setattr(CheckpointLoader, '_schemes', CheckpointLoader._schemes.copy())


def test_riem_is_read_as_a_checkpoint(riem_file):
    checkpoint = CheckpointLoader.load_checkpoint(str(riem_file), map_location='cpu')
    archive = reading.read(riem_file)
    decoded = archive.decode()
    assert list(checkpoint['state_dict']) == list(decoded)
    assert all(torch.equal(checkpoint['state_dict'][name], decoded[name]) for name in decoded)
    assert checkpoint['meta'] == {
        'dataset_meta': {'classes': ('square', 'bar'), 'palette': [(220, 20, 60), (20, 60, 220)]}
    }
    carried = {name: t.riem.view.name for name, t in checkpoint['state_dict'].items() if t.riem is not None}
    assert carried == {record.view.name: record.view.name for record in archive.weights} and carried


def test_records_move_with_the_tensors(riem_file):
    moved = CheckpointLoader.load_checkpoint(str(riem_file), map_location=torch.device('meta'))['state_dict']
    assert {tensor.device.type for tensor in moved.values()} == {'meta'}
    assert moved['backbone.layer1.0.conv1.weight'].riem.encoded.name == 'bilinear'


def test_damaged_riem(riem_file, tmp_path):
    damaged = tmp_path / 'damaged.riem'
    damaged.write_bytes(riem_file.read_bytes()[:-1])
    with pytest.raises(RiemError, match=r'damaged\.riem'):
        CheckpointLoader.load_checkpoint(str(damaged))
    with pytest.raises(RiemError, match=r'absent\.riem'):
        CheckpointLoader.load_checkpoint(str(tmp_path / 'absent.riem'))


def test_stock_init_detector(riem_file, tiny_config):
    model = mmdet_init_detector(str(tiny_config), str(riem_file), device='cpu')
    decoded = reading.read(riem_file).decode()
    assert all(torch.equal(tensor, decoded[name]) for name, tensor in model.state_dict().items())
    assert model.dataset_meta['classes'] == ('square', 'bar')


def test_the_hook_alone_imports_the_scheme(riem_file):
    code = (
        'from mmengine.registry import HOOKS; from mmengine.runner import CheckpointLoader; '
        "HOOKS.build(dict(type='mmriem.StrictLoadHook')); "
        f"print(len(CheckpointLoader.load_checkpoint({str(riem_file)!r}, logger='silent')['state_dict']))"
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) == len(reading.read(riem_file).keys)


def test_pth_through_the_safe_reader(runner_checkpoint, tmp_path):
    read_pth_safely()
    checkpoint = CheckpointLoader.load_checkpoint(str(runner_checkpoint), map_location='cpu')
    assert {'state_dict', 'optimizer', 'param_schedulers', 'message_hub', 'meta'} <= set(checkpoint)
    assert checkpoint['message_hub']['log_scalars']['train/loss'].current() > 0
    bare = tmp_path / 'bare.pth'
    torch.save({'model': checkpoint['state_dict'], 'epoch': 3}, bare)
    assert set(CheckpointLoader.load_checkpoint(str(bare))) == {'state_dict'}


def test_code_in_a_pth(tmp_path):
    path = tmp_path / 'model.pth'
    torch.save(nn.Linear(1, 1), path)
    read_pth_safely()
    with pytest.raises(RiemError, match='trust-checkpoint'):
        CheckpointLoader.load_checkpoint(str(path))
    torch.save({'state_dict': nn.Linear(1, 1).state_dict(), 'meta': {'cfg': Config(dict(a=1))}}, path)
    read_pth_safely(trust=True)
    assert CheckpointLoader.load_checkpoint(str(path))['meta']['cfg'].a == 1
