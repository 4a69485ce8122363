"""tools/maintain/check_mmcv.py: that it sees what two builds differ in, and that its cases call every op of a CPU."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import mmcv
import pytest
import torch


@pytest.fixture(scope='module')
def check_mmcv(tools):
    spec = importlib.util.spec_from_file_location('check_mmcv', tools / 'maintain' / 'check_mmcv.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run_of(**tensors):
    return dict(results={k: [t] for k, t in tensors.items()}, names=['nms'], called=['nms'], not_called=[])


def test_every_kind_of_difference_is_told(check_mmcv):
    nan = torch.tensor([float('nan'), 1.0])
    assert check_mmcv.differences(run_of(nms=nan), run_of(nms=nan.clone())) == []
    assert check_mmcv.differences(run_of(nms=torch.tensor([0.0])), run_of(nms=torch.tensor([-0.0])))
    assert check_mmcv.differences(run_of(nms=torch.zeros(2)), run_of(nms=torch.zeros(2, dtype=torch.float64)))
    assert check_mmcv.differences(run_of(nms=torch.zeros(2)), run_of(nms=torch.zeros(3)))
    other = {**run_of(nms=nan), 'names': ['nms', 'roi_align_forward'], 'not_called': ['psamask_forward']}
    told = check_mmcv.differences(run_of(nms=nan), other)
    assert [sentence.partition(':')[0] for sentence in told] == ['roi_align_forward', 'psamask_forward']


def test_the_installed_mmcv_runs_all_cases_and_they_call_all_ops(tools, tmp_path):
    site = Path(mmcv.__file__).parents[1]
    code = f'import check_mmcv as c; c.SEEDS = 1; c.record({str(tmp_path / "out.pt")!r}, {str(site)!r})'
    subprocess.run([sys.executable, '-c', code], cwd=tools / 'maintain', check=True)
    recorded = torch.load(tmp_path / 'out.pt', weights_only=True)
    assert recorded['not_called'] == [] and len(recorded['called']) >= 28
    results = recorded['results']
    assert results['nms 0'][-1].shape == (0,) or results['nms 0'][-2].shape == (0, 5)
    changed = [tensor for tensors in results.values() for tensor in tensors if tensor.numel() and tensor.any()]
    assert len(changed) > 0.9 * sum(len(tensors) for tensors in results.values())
