"""`mmriem completion`: what a shell offers when Tab is pressed."""

import subprocess

import pytest

from mmriem import cli

pytest.importorskip('shtab', reason='the optional package that makes completions')


@pytest.fixture(scope='module')
def script(tmp_path_factory):
    """The script for bash, as the command prints it."""
    import contextlib
    import io

    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        cli.main(['completion', 'bash'])
    path = tmp_path_factory.mktemp('completion') / 'mmriem'
    path.write_text(printed.getvalue(), encoding='utf-8')
    return path


def offered(script, *words, folder=None):
    """What bash offers for the last word."""
    lines = (
        f'source {script}',
        f'COMP_WORDS=({" ".join(words)!s})',
        f'COMP_CWORD={len(words) - 1}',
        '_shtab_mmriem',
        'printf "%s\\n" "${COMPREPLY[@]}"',
    )
    done = subprocess.run(
        ['bash', '-c', '\n'.join(lines)], capture_output=True, text=True, cwd=folder, check=True, timeout=60
    )
    assert not done.stderr
    return done.stdout.split()


def test_every_command_is_offered(script):
    assert set(cli.commands()) <= set(offered(script, 'mmriem', '""'))
    assert offered(script, 'mmriem', 'comp') == ['compress', 'completion']


@pytest.mark.parametrize(
    ('words', 'expected'),
    [
        (('compress', '--lad'), ['--ladder']),
        (('compress', '--met'), ['--metric']),
        (('agree', '--wor'), ['--worst']),
        (('doctor', '--det'), ['--detectors']),
    ],
)
def test_options_are_those_of_the_command(script, words, expected):
    assert offered(script, 'mmriem', *words) == expected


def test_choices_and_files_are_offered(script, tmp_path):
    assert offered(script, 'mmriem', 'compress', '--metric', 'id') == ['identity']
    (tmp_path / 'detector.py').touch()
    assert 'detector.py' in offered(script, 'mmriem', 'compress', 'dete', folder=tmp_path)
