"""The same commands as for detectors: train, compress, test."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from mmriem.classification import resnet20

CONFIGS = Path(__file__).parents[2] / 'configs' / 'classification'


def accuracy(work_dir) -> dict:
    """What the last evaluation under a work dir wrote, or the last one of a training."""
    found = sorted(Path(work_dir).glob('*/*.json')) or sorted(Path(work_dir).glob('*/vis_data/scalars.json'))
    return json.loads(found[-1].read_text().splitlines()[-1])


def test_digits_from_config_to_accuracy(call_here, tools, tmp_path):
    config = CONFIGS / 'digits_lenet.py'
    options = ['experiment_name=lenet', 'max_epochs=2', 'train_cfg.max_epochs=2', 'train_cfg.val_interval=2']
    assert call_here(tools / 'train.py', config, '--work-dir', 'run', '--cfg-options', *options) is None
    flags = ['--out', 'out', '--bits', '3', '--image-count', '32', '--threads', '1']
    assert call_here(tools / 'compress.py', config, 'run/epoch_2.pth', *flags) is None
    report = json.loads((tmp_path / 'out/epoch_2.json').read_text())
    assert report['totals']['bits_per_weight'] <= 3 and report['totals']['ratio'] < 0.1
    named = ['--cfg-options', 'experiment_name=riem']
    test = [tools / 'test.py', 'out/epoch_2.py', 'out/epoch_2.riem', '--work-dir', 'riem', '--out', 'found.pkl', *named]
    assert call_here(*test) is None
    assert accuracy('riem')['accuracy/top1'] == pytest.approx(accuracy('run')['accuracy/top1'], abs=10)
    assert 50 < accuracy('riem')['accuracy/top1'] <= accuracy('riem')['accuracy/top5']
    found = pickle.loads(Path('found.pkl').read_bytes())
    right = [int(sample['pred_label']) == int(sample['gt_label']) for sample in found]
    assert len(found) == 382 and 100 * np.mean(right) == pytest.approx(accuracy('riem')['accuracy/top1'])


def test_a_checkpoint_of_the_bare_network_and_a_set_of_arrays(call_here, tools, classifier_data):
    data = ['--cfg-options', f'test_dataloader.dataset.data_root={classifier_data}', 'test_dataloader.num_workers=0']
    data += ['test_dataloader.persistent_workers=False']
    config = CONFIGS / 'resnet20_cifar10.py'
    flags = ['--out', 'out', '--bits', '6', '--metric', 'identity', '--threads', '1', *data]
    assert call_here(tools / 'compress.py', config, classifier_data / 'net.pth', *flags) is None
    for name, run in (('out/net.riem', 'riem'), (classifier_data / 'net.pth', 'pth')):
        assert (
            call_here(tools / 'test.py', 'out/net.py', name, '--work-dir', run, *data, f'experiment_name={run}') is None
        )
    assert accuracy('riem').keys() >= {'accuracy/top1', 'accuracy/top5'}
    assert accuracy('riem')['accuracy/top5'] == pytest.approx(accuracy('pth')['accuracy/top5'], abs=15)


def test_what_is_missing_is_one_line(call_here, tools, tmp_path):
    torch.save(resnet20().state_dict(), 'net.pth')
    options = ['--cfg-options', 'test_dataloader.dataset.data_root=absent', 'test_dataloader.num_workers=0']
    options += ['test_dataloader.persistent_workers=False', 'experiment_name=missing']
    error = call_here(tools / 'test.py', CONFIGS / 'resnet20_cifar10.py', 'net.pth', *options)
    assert error.startswith('error: absent: expected a folder with the data set, found none; download it')
    error = call_here(tools / 'compress.py', CONFIGS / 'resnet56_cifar10.py', 'net.pth', '--out', 'out')
    assert 'net.pth: does not fit the model of the config: missing backbone.layer1.3.' in error


PROGRAM = """
import runpy, sys


class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition('.')[0] in ('mmcv', 'mmdet'):
            raise ModuleNotFoundError(f'No module named {name!r}', name=name)


sys.meta_path.insert(0, Absent())
import importlib.util

find = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name in ('mmcv', 'mmdet') else find(name, package)
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name='__main__')
"""


def test_mmengine_is_enough(call, tools, classifier_data, tmp_path):
    """Without mmcv and mmdet, as far as this process can see."""
    program = tmp_path / 'without.py'
    program.write_text(PROGRAM)
    data = [f'test_dataloader.dataset.data_root={classifier_data}', 'test_dataloader.num_workers=0']
    data += ['test_dataloader.persistent_workers=False']
    config, weights = CONFIGS / 'resnet20_cifar10.py', classifier_data / 'net.pth'
    done = call(program, tools / 'test.py', config, weights, '--cfg-options', *data, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert 'accuracy/top1' in done.stdout + done.stderr
