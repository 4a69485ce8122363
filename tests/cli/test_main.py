"""The command `mmriem`: its overview, its commands, and what it needs."""

import importlib.machinery
import re
import runpy
import subprocess
import sys
import types
import warnings
from pathlib import Path

import pytest

import mmriem
from mmriem import cli

COMMANDS = [name for name in cli.commands() if name != cli.DOCTOR]


def without(*packages, arguments=()):
    """The command in a process that has not these packages."""
    code = (
        f'import sys; sys.modules.update(dict.fromkeys({packages!r})); '
        f'from mmriem.cli import main; main({list(arguments)!r})'
    )
    return subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=300)


@pytest.fixture(scope='module')
def small_file(tmp_path_factory):
    """A file of a network of torch alone."""
    import torch

    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 32, 3), torch.nn.BatchNorm2d(32), torch.nn.Conv2d(32, 32, 3))
    told = {'classes': ['cat', 'dog\x1b[31m']}
    path = tmp_path_factory.mktemp('small') / 'net.riem'
    mmriem.save(mmriem.compress(net, bits=6.0, metric='identity', threads=1, dataset_meta=told), path)
    return path


def test_the_overview_names_every_command(capsys):
    cli.main(['--help'])
    printed = capsys.readouterr().out
    for name, told in cli.commands().items():
        assert re.search(rf'^  {name} +{re.escape(told)}$', printed, re.MULTILINE)
    assert all(f'{title}:' in printed for title in cli.GROUPS) and 'Examples:' in printed
    assert max(map(len, printed.splitlines())) <= 100


@pytest.mark.parametrize('flag', ['--version', '-V'])
def test_the_version(flag, capsys):
    cli.main([flag])
    assert capsys.readouterr().out == f'mmriem {mmriem.__version__}\n'


@pytest.mark.parametrize('name', COMMANDS)
def test_every_command_helps_and_gives_examples(name, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main([name, '--help'])
    printed = capsys.readouterr().out
    assert end.value.code == 0 and printed.startswith(f'usage: mmriem {name} ')
    assert f'examples:\n  mmriem {name} ' in printed
    assert all(line.isprintable() for line in printed.splitlines())


@pytest.mark.parametrize('name', ['compress', 'test', 'train', 'export'])
def test_the_tool_of_that_name_is_the_same_program(name, tools, monkeypatch, capsys):
    printed = []
    monkeypatch.setattr(sys, 'argv', [f'{name}.py', '--help'])
    for start in (
        lambda: runpy.run_path(str(tools / f'{name}.py'), run_name='__main__'),
        lambda: cli.main([name, '--help']),
    ):
        with pytest.raises(SystemExit):
            start()
        printed.append(capsys.readouterr().out.partition('\n\n')[2])
    assert printed[0] == printed[1] != ''


@pytest.mark.parametrize(
    ('arguments', 'told'),
    [
        ([], 'usage: mmriem COMMAND'),
        (['inspcet'], "'inspcet': expected a command among compress, test, agree, inspect, .*; did you mean inspect?"),
        (['--bits', '2'], "'--bits': expected a command among .*; mmriem --help lists them"),
    ],
)
def test_no_command_is_an_error(arguments, told, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(arguments)
    captured = capsys.readouterr()
    assert end.value.code == 2 and captured.out == '' and re.search(told, captured.err)


def test_help_and_version_need_no_package():
    for flag in ('--help', '--version'):
        done = without('torch', 'numpy', 'mmengine', arguments=[flag])
        assert done.returncode == 0 and 'mmriem' in done.stdout and done.stderr == ''


def test_a_package_that_is_missing_is_named():
    done = without('mmengine', arguments=['compress', 'a', 'b'])
    assert done.returncode == 1 and done.stderr.startswith(
        'error: mmriem compress needs the package mmengine, found no'
    )
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ('message', 'category'),
    [
        ('pkg_resources is deprecated as an API. See https://setuptools', UserWarning),
        ('`torch.cuda.amp.autocast(args...)` is deprecated. Please use `torch.amp.autocast`', FutureWarning),
        ('torch.meshgrid: in an upcoming release, it will be required to pass the indexing argument.', UserWarning),
        ("<class 'mmdet.DetLocalVisualizer'> instance named of visualizer has been created, the method", UserWarning),
        ('the learning rate is infinite', UserWarning),
    ],
)
def test_warnings_of_other_packages_of_themselves_are_not_shown(message, category, small_file, capsys, monkeypatch):
    monkeypatch.setattr(sys, 'warnoptions', [])
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter('always')
        cli.main(['inspect', str(small_file)])
        warnings.warn(message, category, stacklevel=1)
    assert [str(warning.message) for warning in shown] == ([message] if 'rate' in message else [])


def test_the_doctor_is_a_command_where_it_is_installed_and_needs_no_torch(monkeypatch, capsys):
    doctor = types.ModuleType('mmriem.doctor')
    doctor.__spec__ = importlib.machinery.ModuleSpec('mmriem.doctor', None)
    doctor.main = lambda arguments, prog: len(arguments)
    monkeypatch.setitem(sys.modules, 'mmriem.doctor', doctor)
    cli.main(['--help'])
    assert re.search(r'^Environment:\n  doctor +what is installed', capsys.readouterr().out, re.MULTILINE)
    with pytest.raises(SystemExit) as end:
        cli.main(['doctor', '--json', 'x'])
    assert end.value.code == 2


def test_python_m_mmriem():
    done = subprocess.run([sys.executable, '-m', 'mmriem', '--version'], capture_output=True, text=True, timeout=300)
    assert done.stdout == f'mmriem {mmriem.__version__}\n'


def test_the_package_has_its_calls_and_nothing_else():
    assert {'compress', 'load', 'save', '__version__'} <= set(dir(mmriem))
    assert callable(mmriem.compress)
    with pytest.raises(AttributeError, match="module 'mmriem' has no attribute 'decompress'"):
        mmriem.decompress  # noqa: B018


def test_looking_into_a_file_and_back_takes_the_core_alone(small_file, tmp_path):
    packages = ('mmengine', 'mmcv', 'mmdet', 'cv2', 'rich', 'matplotlib', 'pycocotools')
    seen = without(*packages, arguments=['inspect', str(small_file), '--verify'])
    assert seen.returncode == 0, seen.stderr
    assert 'every weight decodes to the values that were compressed' in seen.stdout
    back = without(*packages, arguments=['convert-back', str(small_file), '--to', str(tmp_path / 'a.pth')])
    assert back.returncode == 0 and (tmp_path / 'a.pth').is_file(), back.stderr


@pytest.mark.parametrize('name', ['compress', 'test', 'export', 'train'])
def test_scripts_without_the_environment_say_how_to_get_it(name, tmp_path):
    script = Path(cli.__file__).parents[2] / 'tools' / f'{name}.py'
    bare = subprocess.run([sys.executable, '-S', '-E', script], capture_output=True, text=True, cwd=tmp_path)
    assert bare.returncode == 1
    assert bare.stderr.startswith('error: mmriem is not installed') and bare.stderr.count('\n') == 1, bare.stderr
    assert 'make setup' in bare.stderr
