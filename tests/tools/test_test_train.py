"""tools/test.py, tools/train.py and the shell scripts around them, run as a user runs them."""

import json
import os
import pickle
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

STOCK_TEST = Path(find_spec('mmdet').origin).parent / '.mim' / 'tools' / 'test.py'
OVERSIZED = 'model.bbox_head.stacked_convs=2'


def metrics(work_dir) -> dict:
    """What the last evaluation under a work dir wrote."""
    files = sorted(Path(work_dir).glob('*/*.json'))
    last = files[-1].read_text().splitlines()[-1]
    return json.JSONDecoder().raw_decode(last)[0]  # each process of MMEngine writes it, so more may be behind it


def assert_one_line(done, message):
    assert done.returncode == 1, done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith('error: ')]
    assert len(errors) == 1 and message in errors[0], done.stderr
    assert 'Traceback' not in done.stderr + done.stdout


def test_riem_file_with_output(call, tools, tiny_config, riem_file, tmp_path):
    work_dir, out = tmp_path / 'work', tmp_path / 'found.pkl'
    flags = ['--work-dir', work_dir, '--out', out, '--show-dir', 'drawn', '--tta']
    done = call(tools / 'test.py', tiny_config, riem_file, *flags, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert metrics(work_dir)['coco/bbox_mAP'] > 0.3
    assert [found['img_id'] for found in pickle.loads(out.read_bytes())] == [0, 1, 2]
    assert len(list(work_dir.glob('*/drawn/*.png'))) == 3


def test_stock_tool_of_mmdet_with_custom_imports(call, call_here, tools, tiny_config, riem_file, tmp_path):
    config = tmp_path / 'imports.py'
    config.write_text(f"_base_ = {str(tiny_config)!r}\ncustom_imports = dict(imports=['mmriem.engine'])\n")
    done = call(STOCK_TEST, config, riem_file, '--work-dir', tmp_path / 'stock')
    assert done.returncode == 0, done.stderr
    assert call_here(tools / 'test.py', tiny_config, riem_file, '--work-dir', tmp_path / 'ours') is None
    stock, ours = metrics(tmp_path / 'stock'), metrics(tmp_path / 'ours')
    assert {k: v for k, v in ours.items() if 'mAP' in k} == {k: v for k, v in stock.items() if 'mAP' in k}


def test_stock_tool_of_mmdet_with_the_strict_hook(call, tiny_config, riem_file, tmp_path):
    options = ['--cfg-options', 'default_hooks.strict_load.type=mmriem.StrictLoadHook', OVERSIZED]
    done = call(STOCK_TEST, tiny_config, riem_file, '--work-dir', tmp_path, *options)
    assert done.returncode == 1
    assert 'RiemError' in done.stderr and 'missing bbox_head.cls_convs.1.conv.weight' in done.stderr


def test_wrong_config_or_data_is_one_line(call, tools, tiny_config, riem_file, tmp_path):
    done = call(tools / 'test.py', tiny_config, riem_file, '--cfg-options', OVERSIZED, cwd=tmp_path)
    assert_one_line(done, f'{riem_file}: does not fit the model of the config')
    options = ['--cfg-options', 'test_dataloader.dataset.ann_file=absent.json']
    done = call(tools / 'test.py', tiny_config, riem_file, *options, cwd=tmp_path)
    assert_one_line(done, 'absent.json: No such file or directory')


def test_pth_of_another_config(call_here, tools, tiny_config, runner_checkpoint):
    error = call_here(tools / 'test.py', tiny_config, runner_checkpoint, '--cfg-options', OVERSIZED)
    assert error.startswith(f'error: {runner_checkpoint}: does not fit')


def test_absent_config_or_checkpoint(call_here, tools, tiny_config, riem_file):
    assert 'absent.py: no such config file' in call_here(tools / 'test.py', 'absent.py', riem_file)
    assert 'absent.pth: no such file' in call_here(tools / 'test.py', tiny_config, 'absent.pth')


def test_code_in_a_checkpoint(call_here, tools, tiny_config, runner_checkpoint, tmp_path):
    path = tmp_path / 'odd.pth'
    tree = torch.load(runner_checkpoint, weights_only=False)
    torch.save({**tree, 'code': torch.nn.Identity()}, path)
    named = ['--cfg-options', 'experiment_name=trusted']  # names are unique by the second only
    assert 'torch.nn.modules.linear.Identity' in call_here(tools / 'test.py', tiny_config, path)
    assert call_here(tools / 'test.py', tiny_config, path, '--trust-checkpoint', *named) is None
    assert metrics(tmp_path / 'work_dirs' / 'tiny')['coco/bbox_mAP'] > 0.5


def test_unusable_flags(call_here, tools, tiny_config, riem_file, tmp_path, capsys):
    assert call_here(tools / 'test.py', tiny_config, riem_file, '--out', 'found.json') == 2
    assert 'expected a .pkl' in capsys.readouterr().err
    error = call_here(tools / 'train.py', tiny_config, '--auto-scale-lr')
    assert '--auto-scale-lr needs auto_scale_lr.enable' in error
    assert not list(tmp_path.iterdir())


def test_config_without_data(call_here, tools, tiny_config, riem_file, tmp_path):
    config = tmp_path / 'model.py'
    config.write_text(f'_base_ = {str(tiny_config)!r}\ntest_dataloader = None\ntrain_cfg = None\n')
    assert 'expected test_dataloader, found none' in call_here(tools / 'test.py', config, riem_file)
    assert 'expected train_cfg, found none' in call_here(tools / 'train.py', config)


def test_train_resume_and_test(call_here, tools, tiny_config, riem_file, tmp_path):
    work_dir = tmp_path / 'work'
    train = [tools / 'train.py', tiny_config, '--work-dir', work_dir]
    assert call_here(*train, '--cfg-options', f'load_from={riem_file}', 'experiment_name=first') is None
    longer = ['--resume', '--cfg-options', 'train_cfg.max_epochs=2', 'experiment_name=next']
    assert call_here(*train, *longer) is None
    first, second = (torch.load(work_dir / f'epoch_{n}.pth', weights_only=False) for n in (1, 2))
    steps = [checkpoint['optimizer']['state'][0]['step'] for checkpoint in (first, second)]
    assert steps == [2, 4] and second['meta']['epoch'] == 2
    assert call_here(tools / 'test.py', tiny_config, work_dir / 'epoch_2.pth', '--work-dir', work_dir) is None
    assert metrics(work_dir)['coco/bbox_mAP'] > 0.1


def test_two_processes(call, call_here, tools, tiny_config, riem_file, tmp_path, port):
    flags = ['--work-dir', 'two', '--cfg-options', 'env_cfg.dist_cfg.backend=gloo']
    done = call(tools / 'dist_test.sh', tiny_config, riem_file, 2, *flags, cwd=tmp_path, PORT=port)
    assert done.returncode == 0, done.stderr
    assert call_here(tools / 'test.py', tiny_config, riem_file, '--work-dir', 'one') is None
    one, two = (metrics(tmp_path / name)['coco/bbox_mAP'] for name in ('one', 'two'))
    assert one == two > 0.3


@pytest.mark.parametrize(
    ('script', 'positional', 'expected'),
    [
        (
            'slurm_test.sh',
            ['part', 'job', 'a config.py', 'x.riem'],
            ['test.py', 'a config.py', 'x.riem', '--launcher', 'slurm'],
        ),
        (
            'slurm_train.sh',
            ['part', 'job', 'config.py', 'a dir'],
            ['train.py', 'config.py', '--work-dir', 'a dir', '--launcher', 'slurm'],
        ),
    ],
)
def test_slurm_command_lines(call, tools, tmp_path, script, positional, expected):
    """No Slurm here: an `srun` that prints its arguments stands in, and they are compared."""
    srun = tmp_path / 'srun'
    srun.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    srun.chmod(0o755)
    path = f'{tmp_path}{os.pathsep}{os.environ["PATH"]}'
    environment = dict(PATH=path, GPUS='4', GPUS_PER_NODE='2', SRUN_ARGS='--qos=low --exclusive')
    done = call(tools / script, *positional, '--cfg-options', 'a=[1, 2]', cwd=tmp_path, **environment)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert {
        '--partition=part',
        '--job-name=job',
        '--gres=gpu:2',
        '--ntasks=4',
        '--qos=low',
        '--exclusive',
    } <= set(lines)
    python = lines.index('python')
    found = lines[python:]
    assert found[:2] == ['python', '-u'] and found[2] == str(tools / expected[0])
    assert found[3:] == [*expected[1:], '--cfg-options', 'a=[1, 2]']


@pytest.mark.parametrize(
    'script', ['dist_test.sh', 'dist_train.sh', 'slurm_test.sh', 'slurm_train.sh', 'dist_compress.sh']
)
def test_scripts_tell_their_usage(call, tools, script):
    done = call(tools / script, 'config.py')
    assert done.returncode == 2 and done.stderr.startswith(f'usage: {script}')
