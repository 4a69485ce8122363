"""tools/maintain/publish_model.py: the weights in half precision, and nothing half-written."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

from mmriem.core.errors import RiemError


@pytest.fixture(scope='module')
def publish(tools):
    spec = importlib.util.spec_from_file_location('publish_model', tools / 'maintain' / 'publish_model.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.publish


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    path = tmp_path / 'epoch_1.pth'
    state_dict = {'w': torch.linspace(-2, 2, 7), 'index': torch.arange(3), 'flag': torch.tensor([True])}
    meta = {'epoch': 1, 'dataset_meta': {'classes': ('a', 'b')}}
    torch.save({'meta': meta, 'state_dict': state_dict, 'optimizer': {'lr': 0.1}}, path)
    return path


def test_floats_are_halved_and_the_rest_is_left_out(publish, checkpoint, tmp_path):
    size = publish(checkpoint, tmp_path / 'out/small.pth')
    assert size == (tmp_path / 'out/small.pth').stat().st_size
    content = torch.load(tmp_path / 'out/small.pth', weights_only=True)
    assert content['meta'] == {'dataset_meta': {'classes': ('a', 'b')}}
    assert set(content) == {'meta', 'state_dict'}
    tensors = content['state_dict']
    assert torch.equal(tensors['w'], torch.linspace(-2, 2, 7).half())
    assert torch.equal(tensors['index'], torch.arange(3)) and tensors['flag'].dtype == torch.bool
    assert [p.name for p in (tmp_path / 'out').iterdir()] == ['small.pth']


def test_same_weights_give_the_same_bytes(publish, checkpoint, tmp_path):
    for folder in ('a', 'b'):
        publish(checkpoint, tmp_path / folder / 'small.pth')
    assert (tmp_path / 'a/small.pth').read_bytes() == (tmp_path / 'b/small.pth').read_bytes()


def test_an_existing_file_is_kept_without_force(publish, checkpoint, tmp_path):
    target = tmp_path / 'small.pth'
    target.write_bytes(b'precious')
    with pytest.raises(RiemError, match='--force'):
        publish(checkpoint, target)
    assert target.read_bytes() == b'precious'
    publish(checkpoint, target, force=True)
    assert torch.load(target, weights_only=True)['state_dict']['w'].dtype == torch.float16


def test_a_value_beyond_half_precision_is_an_error(publish, tmp_path):
    torch.save({'bn.running_var': torch.tensor([1.0, 7e4])}, tmp_path / 'big.pth')
    with pytest.raises(RiemError, match=r'bn\.running_var.*70000'):
        publish(tmp_path / 'big.pth', tmp_path / 'small.pth')
    assert [p.name for p in tmp_path.iterdir()] == ['big.pth']


def test_command_line_tells_errors_in_one_line(call, tools, tmp_path):
    result = call(tools / 'maintain' / 'publish_model.py', tmp_path / 'none.pth', tmp_path / 'small.pth')
    assert result.returncode == 1
    assert result.stderr.startswith('error: ') and len(result.stderr.splitlines()) == 1
    assert 'none.pth' in result.stderr
