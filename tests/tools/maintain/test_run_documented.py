"""The commands that README and the docs show: the programs take their arguments, and the files that they name exist."""

from __future__ import annotations

import argparse
import importlib.util
import re
import runpy
import shlex
import sys
from itertools import takewhile
from pathlib import Path

import mmdet
import pytest

from mmriem.cli import main

ROOT = Path(__file__).parents[3]
MIM = Path(mmdet.__path__[0]) / '.mim'
BEHIND = {'compress': 'mmriem compress', 'test': 'mmriem test', 'train': 'mmriem train'}
"""What a launcher, `dist_NAME.sh` or `slurm_NAME.sh`, calls."""


def imported():
    path = ROOT / 'tools' / 'maintain' / 'run_documented.py'
    spec = importlib.util.spec_from_file_location('run_documented', path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


documented = imported()
COMMANDS = list(dict.fromkeys(command for page in documented.pages() for command in documented.commands(page)))


class Parsed(BaseException):
    """A command line was taken: the program goes no further."""


@pytest.fixture
def stops_when_parsed(monkeypatch):
    parse = argparse.ArgumentParser.parse_args

    def parse_and_stop(self, args=None, namespace=None):
        raise Parsed(parse(self, args, namespace))

    monkeypatch.setattr(argparse.ArgumentParser, 'parse_args', parse_and_stop)


def words_of(text: str) -> list[str]:
    """The words of a command as a shell hands them on, without variables of the environment before it."""
    text = text.replace('$(python -c "import mmdet; print(mmdet.__path__[0])")', str(MIM.parent))
    words = list(takewhile(lambda word: word not in ('>', '|', '&&'), shlex.split(text)))
    while re.match(r'[A-Z_]+=', words[0]):
        words.pop(0)
    return words


def program_of(words: list[str]) -> list[str]:
    """`mmriem COMMAND ...` or `python FILE ...` behind a launcher; other programs as they are."""
    if words[0] == 'bash':
        words = words[1:]
    if words[0] == 'mpirun':
        return words[words.index('python') :]
    if words[0] == 'docker' and 'run' in words:
        return words[words.index('mmriem') :]
    if words[:3] == ['mim', 'run', 'mmriem'] or words[:3] == ['mim', 'test', 'mmriem']:
        rest = [word for word in words[3:] if word != '--checkpoint']
        return ['mmriem', *rest] if words[1] == 'run' else ['mmriem', 'test', *rest]
    if found := re.fullmatch(r'tools/(dist|slurm)_(\w+)\.sh', words[0]):
        arguments = words[1:]
        if found[1] == 'slurm':
            return [*BEHIND[found[2]].split(), *arguments[2:]]
        return [*BEHIND[found[2]].split(), *arguments[:2], *arguments[3:]]
    return words


def named_files(words: list[str]) -> list[Path]:
    """The files of the repository and of mmdet that a command names, outputs left out."""
    given = [word for before, word in zip(['', *words], words) if before not in ('--out', '--work-dir')]
    own = [ROOT / word for word in given if re.match(r'(tools|configs|demo|docker)/', word)]
    stock = [MIM / 'configs' / word.removeprefix('mmdet::') for word in given if word.startswith('mmdet::')]
    return [*own, *stock, *(Path(word) for word in given if word.startswith(str(MIM)))]


@pytest.mark.parametrize('command', COMMANDS, ids=lambda command: f'{command.page}: {command.text}')
def test_the_program_takes_the_arguments_and_the_files_exist(command, stops_when_parsed, monkeypatch, capsys):
    words = words_of(command.run_as(Path('data')))
    missing = [str(path) for path in named_files(words) if not path.exists()]
    assert not missing
    monkeypatch.chdir(ROOT)
    program, *arguments = program_of(words)
    if program == 'make':
        target = arguments[0]
        assert re.search(rf'^{re.escape(target)}:', (ROOT / 'Makefile').read_text(encoding='utf-8'), re.M)
    elif program == 'mmriem':
        with pytest.raises(Parsed):
            main(arguments)
    elif program == 'python':
        monkeypatch.setattr(sys, 'argv', arguments)
        monkeypatch.setattr(sys, 'path', [str((ROOT / arguments[0]).parent), *sys.path])
        with pytest.raises(Parsed):
            runpy.run_path(arguments[0], run_name='__main__')
    else:
        assert program in ('pip', 'docker', 'mim')


def test_all_pages_are_read():
    assert {'README.md', 'docs/choosing.md', 'docs/coco.md'} <= {command.page for command in COMMANDS}


def test_a_command_ends_where_its_comment_begins_and_goes_on_after_a_backslash(tmp_path, monkeypatch):
    monkeypatch.setattr(documented, 'ROOT', tmp_path)
    page = tmp_path / 'page.md'
    page.write_text(
        'Text:\n\n    mmriem compress a.py "#1"   # a comment\n    W = c\n    python b.py \\\n        --out c\n\n'
        'More\n    mmriem not.a.block\n\n```bash\nmmriem test x\n```\n',
        encoding='utf-8',
    )
    assert [command.text for command in documented.commands(page)] == [
        'mmriem compress a.py "#1"',
        'python b.py --out c',
        'mmriem test x',
    ]


def test_a_reason_to_skip_is_one_of_a_command_that_exists():
    texts = [command.named() for command in COMMANDS]
    unused = [pattern for pattern, _ in documented.SKIPPED if not any(re.search(pattern, text) for text in texts)]
    assert not unused
