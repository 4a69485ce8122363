import csv
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch

from mmriem.benchmark import methods, runner, worker
from mmriem.benchmark.networks import Classifier
from mmriem.classification import resnet20
from mmriem.core.pipeline.compress import compress
from mmriem.core.weights.views import find_weights

FILES = ['picture.png', 'table.csv', 'table.md']


def table(folder):
    with open(folder / 'out' / 'table.csv', newline='') as file:
        return list(csv.DictReader(file))


@pytest.fixture
def arguments(benchmark_config, classifier_data):
    return [benchmark_config.name, '--data-root', classifier_data, '--out', 'out', '--threads', '1']


@pytest.fixture
def in_this_process(monkeypatch):
    """Jobs are done here, which is quicker."""
    monkeypatch.setattr(runner, 'work', worker.do)


def test_every_method_on_a_network(call_here, tools, arguments, tmp_path, capsys, in_this_process):
    assert call_here(tools / 'measure' / 'benchmark.py', *arguments, '--networks', 'small') is None
    rows = table(tmp_path)
    found = [(row['network'], row['method'], row['setting']) for row in rows]
    assert found == [
        ('small', 'original, fp32', ''),
        ('small', 'fp16', ''),
        ('small', 'rounding', 'bits=4'),
        ('small', 'low rank', 'representation=bilinear, ratio=0.3'),
    ]
    original, half, rounded, ours = rows
    model = resnet20()
    floats = sum(x.numel() for x in model.state_dict().values() if x.is_floating_point())
    weights = sum(x.matrix_shape[0] * x.matrix_shape[1] for x in find_weights(model))
    assert int(original['bytes']) == 4 * floats and not original['encode s']
    assert 2 * floats < int(half['bytes']) < 2 * floats + 12_000
    assert abs(int(ours['bytes']) - 0.3 * 4 * floats) < 0.05 * 4 * floats
    for row in rows:
        assert float(row['bits/weight']) == pytest.approx(8 * int(row['bytes']) / weights)
    assert half['accuracy'] == original['accuracy']
    assert float(rounded['encode s']) > 0 and float(rounded['decode s']) > 0 and float(rounded['peak MB']) > 50
    assert sorted(path.name for path in (tmp_path / 'out').iterdir()) == FILES
    text = (tmp_path / 'out' / 'table.md').read_text()
    assert '- left out: small, low rank, {"representation": "bilinear", "ratio": 0.001}: budget: expected room' in text
    assert 'benchmark.py bench.py' in text
    printed = capsys.readouterr()
    assert text in printed.out and 'left out: small, low rank' in printed.err


def test_reuse_takes_finished_cells(call_here, tools, arguments, tmp_path, monkeypatch, in_this_process):
    command = [tools / 'measure' / 'benchmark.py', *arguments, '--networks', 'small', '--methods', 'fp16', 'rounding']
    assert call_here(*command) is None
    before = (tmp_path / 'out' / 'table.csv').read_bytes()
    assert len(list((tmp_path / 'work_dirs' / 'benchmark').glob('*.json'))) == 3

    def no_work(job):
        raise AssertionError(job)

    monkeypatch.setattr(runner, 'work', no_work)
    assert call_here(*command, '--reuse') is None
    assert (tmp_path / 'out' / 'table.csv').read_bytes() == before
    with pytest.raises(AssertionError):
        call_here(*command)


def test_cells_of_another_checkpoint_are_not_reused(
    call_here, tools, arguments, classifier_data, tmp_path, in_this_process
):
    shutil.copytree(classifier_data, tmp_path / 'moved')
    arguments[2] = 'moved'
    chosen = ['fp16', 'low rank']
    command = [tools / 'measure' / 'benchmark.py', *arguments, '--networks', 'small', '--methods', *chosen, '--reuse']
    assert call_here(*command) is None
    state_dict = torch.load(tmp_path / 'moved' / 'net.pth', weights_only=True)
    state_dict['linear.bias'] += 1
    torch.save(state_dict, tmp_path / 'moved' / 'net.pth')
    assert call_here(*command) is None
    for method in ('fp16', 'low_rank'):
        assert len(list((tmp_path / 'work_dirs' / 'benchmark').glob(f'small-{method}-*.json'))) == 2


def test_a_peer_that_is_not_installed_is_skipped_in_one_line(
    call_here, tools, arguments, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(methods.METHODS['rounding'], 'requires', 'no_such_module')
    monkeypatch.setattr(methods.METHODS['rounding'], 'install', 'pip install it')
    command = [tools / 'measure' / 'benchmark.py', *arguments, '--networks', 'small', '--methods', 'rounding']
    assert call_here(*command) is None
    told = [line for line in capsys.readouterr().err.splitlines() if 'skipped' in line]
    assert told == ['rounding: skipped, the module no_such_module is not installed; pip install it']
    assert [row['method'] for row in table(tmp_path)] == ['original, fp32']


def test_peers_are_recalibrated_where_there_is_a_probe(
    call_here, tools, arguments, tmp_path, monkeypatch, in_this_process
):
    given = []

    def worse(network, state_dict, reference, probe):
        given.append(probe)
        return {key: tensor * float('nan') if key == 'linear.bias' else tensor for key, tensor in state_dict.items()}

    def measuring(model, settings, probe, **more):
        given.append(probe)
        return compress(model, settings, **more)

    monkeypatch.setattr(Classifier, 'probe', lambda self, *_: f'images of {self.name}')
    monkeypatch.setattr(runner, '_recalibrated', worse)
    monkeypatch.setattr(methods, 'compress', measuring)
    command = [tools / 'measure' / 'benchmark.py', *arguments, '--networks', 'small', '--methods', 'fp16', 'low rank']
    assert call_here(*command) is None
    original, half, ours = table(tmp_path)
    assert half['recalibrated'] != '' and ours['recalibrated'] == original['recalibrated'] == ''
    assert given == ['images of small'] * 3  # fp16 recalibrated, two ratios compressed


def test_rows_of_an_earlier_table_stay(call_here, tools, arguments, tmp_path, in_this_process):
    first = [tools / 'measure' / 'benchmark.py', *arguments, '--networks', 'small', '--methods']
    assert call_here(*first, 'fp16') is None
    before = table(tmp_path)
    assert call_here(*first, 'rounding', '--keep', tmp_path / 'out' / 'table.csv') is None
    after = table(tmp_path)
    assert [row['method'] for row in before] == ['original, fp32', 'fp16']
    assert after[:2] == before and {row['method'] for row in after[2:]} == {'rounding'}


@pytest.mark.parametrize(
    ('more', 'message'),
    [
        (['--networks', 'large'], "network 'large': expected one of small, again of the config"),
        (['--methods', 'zip'], "method 'zip': expected one of fp16, rounding, low rank of the config"),
    ],
)
def test_unknown_names_are_one_error(call_here, tools, arguments, more, message):
    assert message in call_here(tools / 'measure' / 'benchmark.py', *arguments, *more)


def test_missing_data_is_one_error(call_here, tools, arguments):
    arguments[2] = 'nowhere'
    assert 'nowhere/net.pth: no such checkpoint' in call_here(tools / 'measure' / 'benchmark.py', *arguments)


def test_an_interrupt_leaves_the_finished_networks(tools, arguments, tmp_path):
    command = [sys.executable, tools / 'measure' / 'benchmark.py', *arguments, '--methods', 'fp16']
    process = subprocess.Popen(
        [*map(str, command)],
        cwd=tmp_path,
        env={**os.environ, 'OMP_NUM_THREADS': '1'},
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored in what a shell starts with &
    )
    deadline = time.monotonic() + 120
    while not (tmp_path / 'out' / 'table.md').exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    _, printed = process.communicate(timeout=60)
    assert process.returncode == 1
    assert 'interrupted: finished cells stay' in printed and 'Traceback' not in printed
    original, half = table(tmp_path)
    assert (original['network'], half['network'], half['method']) == ('small', 'small', 'fp16')
    assert 50 < float(half['peak MB']) < 1500
    assert sorted(path.name for path in (tmp_path / 'out').iterdir()) == FILES
