"""`python -m mmriem.doctor` says what is there and what is wrong, whatever is missing."""

from __future__ import annotations

import subprocess
import sys
import venv
from pathlib import Path

import pytest

from mmriem import doctor

ROOT = Path(__file__).parents[1]


def by_name(findings):
    return {finding.name: finding for finding in findings}


def test_this_environment_is_well(capsys):
    assert doctor.main(['--detectors']) == 0
    printed = capsys.readouterr().out
    assert 'its ops run on cpu' in printed and 'mmriem.RieMFPN' in printed and 'nothing is wrong' in printed


def test_an_empty_environment_is_told_what_to_install(tmp_path):
    venv.create(tmp_path, with_pip=False)
    command = [tmp_path / 'bin' / 'python', '-m', 'mmriem.doctor']
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr == ''
    assert 'torch is not installed' in done.stdout and 'mmcv is not installed' in done.stdout


def broken_module(folder: Path, name: str, text: str) -> None:
    (folder / f'{name}.py').write_text(text)


@pytest.mark.parametrize(
    ('name', 'text', 'part'),
    [
        ('mmcv', 'raise ImportError("_ext.so: undefined symbol: _ZN3c105ErrorC2E")', 'undefined symbol'),
        ('mmdet', 'assert False, "MMCV==2.2.0 is used but incompatible"', 'MMCV==2.2.0 is used'),
        ('constriction', 'import numpy.core.missing', 'numpy.core.missing'),
    ],
)
def test_a_package_that_cannot_be_imported(tmp_path, name, text, part):
    broken_module(tmp_path, name, text)
    code = f'import sys; sys.path.insert(0, {str(tmp_path)!r}); from mmriem import doctor; sys.exit(doctor.main([]))'
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and 'Traceback' not in done.stderr
    line = next(line for line in done.stdout.splitlines() if f' {name} ' in f'{line} ')
    assert line.startswith('WRONG') and part in done.stdout


def test_a_package_and_its_fork_together(monkeypatch):
    original = doctor._version
    monkeypatch.setattr(doctor, '_version', lambda dist: '2.3.6' if dist == 'onedl-mmcv' else original(dist))
    finding = by_name(doctor.examine())['mmcv']
    assert finding.mark == 'WRONG' and 'pip uninstall mmcv onedl-mmcv' in finding.remedy


def test_ops_that_give_another_result(monkeypatch):
    import mmcv.ops

    monkeypatch.setattr(mmcv.ops, 'nms', lambda boxes, scores, threshold: (None, doctor_tensor([0, 1, 2])))
    finding = by_name(doctor.examine())['mmcv']
    assert finding.mark == 'WRONG' and 'kept boxes [0, 1, 2]' in finding.problem


def doctor_tensor(values):
    import torch

    return torch.tensor(values)


@pytest.mark.parametrize(
    ('name', 'version', 'part'),
    [('python', '3.9', '3.10 to 3.13'), ('torch', '1.13.1+cu117', '2.0 to 2.14'), ('numpy', '3.0.0', 'only')],
)
def test_versions_outside_of_what_was_tried(name, version, part):
    assert part in doctor._outside(name, version)[0]


@pytest.mark.parametrize(('name', 'version'), [('python', '3.13'), ('torch', '2.0.1'), ('numpy', '2.4.6')])
def test_versions_inside(name, version):
    assert doctor._outside(name, version) == ('', '')
