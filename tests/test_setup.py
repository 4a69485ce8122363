"""setup.py and tools/setup_env.sh: what wheels and source archives hold, and what an installation leaves alone."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ('mmriem', 'configs', 'tools')
FILES = ('setup.py', 'MANIFEST.in', 'README.md', 'LICENSE', 'model-index.yml', 'requirements.txt')
COMPILED = ('mmriem/core/coding/_decoder.', 'mmriem/core/representations/lattice/_search.')


@pytest.fixture(scope='module')
def source(tmp_path_factory) -> Path:
    """A copy of what packages are made of."""
    source = tmp_path_factory.mktemp('package') / 'source'
    skipped = shutil.ignore_patterns('__pycache__', '.mim', '*.so')
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, source / folder, ignore=skipped)
    for name in FILES:
        shutil.copy2(ROOT / name, source)
    return source


def made_by(source: Path, *command: str) -> Path:
    """What `setup.py COMMAND` puts into a folder beside the source."""
    target = source.parent / command[0]
    done = subprocess.run(
        [sys.executable, 'setup.py', '-q', *command, '--dist-dir', str(target)],
        cwd=source,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return next(target.iterdir())


@pytest.fixture(scope='module')
def wheel(source) -> Path:
    return made_by(source, 'bdist_wheel')


def test_wheel_holds_configs_tools_index_and_licence(source, wheel):
    held = set(zipfile.ZipFile(wheel).namelist())
    for folder in ('configs', 'tools'):
        for path in (source / folder).rglob('*.*'):
            assert f'mmriem/.mim/{path.relative_to(source)}' in held
    assert {'mmriem/.mim/model-index.yml', 'mmriem/core/representations/lattice/representation.py'} <= held
    for module in COMPILED:
        assert any(name.startswith(module) for name in held)
    assert any(name.endswith('LICENSE') for name in held)


def test_source_archive_holds_all_that_a_wheel_is_made_of(source):
    archive = made_by(source, 'sdist')
    with tarfile.open(archive) as tar:
        held = {name.partition('/')[2] for name in tar.getnames()}
    wanted = {str(path.relative_to(source)) for folder in FOLDERS for path in (source / folder).rglob('*.*')}
    wanted = {name for name in wanted if '__pycache__' not in name and not name.startswith('mmriem/.mim')}
    assert {*wanted, *FILES} <= held


STACKS = {
    'openmmlab': {
        'torch': '2.1.2+cu121', 'numpy': '1.26.4', 'mmengine': '0.10.7', 'mmcv': '2.1.0', 'mmdet': '3.3.0',
        'pycocotools': '2.0.11', 'rich': '15.0.0', 'safetensors': '0.8.0', 'constriction': '0.5.0',
    },
    'onedl': {
        'torch': '2.13.0', 'numpy': '2.2.6', 'onedl-mmengine': '0.10.12', 'onedl-mmcv': '2.3.6',
        'onedl-mmdetection': '3.5.1', 'pycocotools': '2.0.11', 'rich': '15.0.0', 'safetensors': '0.8.0',
        'constriction': '0.5.0',
    },
}  # fmt: skip


def environment(folder: Path, versions: dict[str, str]) -> Path:
    """An environment in which pip finds these versions: their metadata alone, which is all that it decides by."""
    venv.create(folder, with_pip=False)
    site = next((folder / 'lib').glob('python*')) / 'site-packages'
    for name, version in versions.items():
        info = site / f'{name.replace("-", "_")}-{version}.dist-info'
        info.mkdir()
        (info / 'METADATA').write_text(f'Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n')
        (info / 'INSTALLER').write_text('pip\n')
        (info / 'RECORD').write_text('')
    return folder / 'bin' / 'python'


def pip(python: Path, *arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, '-m', 'pip', '--disable-pip-version-check', '--python', python, *arguments]
    return subprocess.run([*map(str, command)], capture_output=True, text=True)


@pytest.mark.parametrize('flags', [(), ('--no-deps',)], ids=['with what it needs', 'alone'])
@pytest.mark.parametrize('stack', STACKS)
def test_installing_changes_no_version_of_what_is_there(tmp_path, wheel, stack, flags):
    python = environment(tmp_path / 'there', STACKS[stack])
    before = pip(python, 'freeze').stdout.splitlines()
    assert len(before) == len(STACKS[stack])
    asked = f'{wheel}[{stack}]' if not flags else wheel
    done = pip(python, 'install', '--no-index', *flags, asked)
    assert done.returncode == 0, done.stderr
    after = pip(python, 'freeze').stdout.splitlines()
    assert [line for line in after if not line.startswith('mmriem')] == before and len(after) == len(before) + 1


def test_bounds_of_what_is_there_already_are_open_upwards(wheel):
    with zipfile.ZipFile(wheel) as held:
        metadata = held.read(next(name for name in held.namelist() if name.endswith('/METADATA'))).decode()
    fields = [line.split(': ', 1) for line in metadata.split('\n\n')[0].splitlines() if ': ' in line]
    needs = [value for name, value in fields if name == 'Requires-Dist']
    assert {'torch>=2.0', 'numpy>=1.24'} <= set(needs)
    assert not any('<' in need for need in needs if need.startswith(('torch', 'numpy', 'mm', 'onedl')))
    assert not any(need.startswith(('mmcv', 'onedl-mmcv', 'opencv')) for need in needs)
    assert ['Requires-Python', '>=3.10'] in fields


def set_up(tmp_path, **settings):
    """Run tools/setup_env.sh as far as it comes."""
    return subprocess.run(
        ['bash', ROOT / 'tools' / 'setup_env.sh'],
        env={**os.environ, 'VENV': str(tmp_path / 'venv'), 'STACK': '', **settings},
        capture_output=True,
        text=True,
    )


def test_set_up_tells_the_pythons_that_it_is_for(tmp_path):
    old = tmp_path / 'python3.9'
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo "Python 3.9.18" && exit 0\nexit 1\n')
    old.chmod(0o755)
    done = set_up(tmp_path, PYTHON=str(old))
    assert done.returncode == 1 and 'need Python 3.11 or 3.12, found Python 3.9.18' in done.stderr
    assert not (tmp_path / 'venv').exists()


def test_set_up_tells_the_stacks_that_it_knows(tmp_path):
    done = set_up(tmp_path, STACK='mmlab')
    assert done.returncode == 1 and 'STACK=mmlab is not known' in done.stderr and 'STACK=onedl' in done.stderr


def test_set_up_does_not_mix_stacks(tmp_path):
    (tmp_path / 'venv').mkdir()
    (tmp_path / 'venv' / '.stack').write_text('openmmlab\n')
    done = set_up(tmp_path, STACK='onedl')
    assert (
        done.returncode == 1
        and 'install modules of the same names' in done.stderr
        and 'VENV=.venv-onedl' in done.stderr
    )
