"""The campaigns of tools/maintain with hostile files: their share of every run of the tests, without a finding."""

import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[3] / 'tools' / 'maintain'


def run(script, *arguments):
    return subprocess.run([sys.executable, FOLDER / script, *arguments], capture_output=True, text=True)


def imported(name, monkeypatch):
    """A module of the folder, which finds the others there."""
    monkeypatch.syspath_prepend(str(FOLDER))
    spec = importlib.util.spec_from_file_location(name, FOLDER / f'{name}.py')
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    return module


def test_twenty_thousand_damaged_files_are_refused_or_load_finite_values():
    done = run('fuzz_riem.py', '--count', '20000', '--seed', '1', '--processes', '2')
    assert done.returncode == 0, done.stderr
    assert '20,000 files, seed 1, 0 findings' in done.stdout
    rows = re.findall(r'^\| (.+) \| ([\d,]+) \| ([\d,]+) \|$', done.stdout, re.MULTILINE)
    counts = {way: [int(number.replace(',', '')) for number in numbers] for way, *numbers in rows}
    loaded, refused = counts.pop('all')
    assert len(counts) == 9 and loaded > 2000 < refused and loaded + refused == 20_000
    assert counts['bytes of the file'][0] == 0  # a hash tells each of them
    assert all(loaded and refused for way, (loaded, refused) in counts.items() if way != 'bytes of the file')


def test_hundreds_of_hostile_checkpoints_run_no_code_and_end_in_a_sentence():
    done = run('fuzz_checkpoints.py')
    assert done.returncode == 0, done.stderr
    told = re.search(r'^([\d,]+) readings of ([\d,]+) checkpoints, 0 findings$', done.stdout, re.MULTILINE)
    assert int(told[2].replace(',', '')) >= 400 and '| sound | 2 | 0 |' in done.stdout


def test_a_mutant_is_made_again_by_its_number(monkeypatch):
    fuzz_riem = imported('fuzz_riem', monkeypatch)
    for number in range(40):
        assert fuzz_riem.mutant(number, 5) == fuzz_riem.mutant(number, 5)
    assert fuzz_riem.mutant(1, 5) != fuzz_riem.mutant(1, 6)


def test_samples_of_the_mutants_are_sound(monkeypatch):
    fuzz_riem = imported('fuzz_riem', monkeypatch)
    for name, data in fuzz_riem.samples_of().items():
        result = fuzz_riem.judge(1, ('as it is', data, name))
        assert result.outcome == 'loaded, finite', (name, result)
        assert fuzz_riem.repaired(fuzz_riem.Parts.of(data)).text() == fuzz_riem.Parts.of(data).text()


TRIALS = """
import os, sys, time
import trials
from trials import FINDING, Result, Trial, run_trials

def judge(number, made):
    assert made == number
    if number == 3:
        os.abort()
    if number == 4:
        raise ValueError('unexpected')
    if number == 5:
        b'x' * (1 << 29)
    if number == 6:
        while True:
            pass
    return Result(number, 'a way', 'as it should be')

trials.SECONDS = 0.4
for processes in (1, 2):
    tally = run_trials(Trial(lambda number: number, judge), range(9), processes)
    print(sorted((result.number, result.outcome[len(FINDING):].split()[0]) for result in tally.findings))
    print(tally.counts['a way', 'as it should be'])
"""


def test_trials_that_crash_raise_hang_or_take_memory_are_counted_and_the_others_go_on(tmp_path):
    script = tmp_path / 'some.py'
    script.write_text(f'import sys\nsys.path.insert(0, {str(FOLDER)!r})\n{TRIALS}')
    done = subprocess.run([sys.executable, script], capture_output=True, text=True)
    wanted = [(3, 'crash'), (4, 'another'), (5, 'over'), (6, 'hang')]
    assert done.stdout.splitlines() == [str(wanted), '5'] * 2, done.stderr


def has_libfuzzer():
    clang = next(filter(None, map(shutil.which, ['clang', *(f'clang-{n}' for n in range(22, 10, -1))])), None)
    if clang is None:
        return False
    say = [clang, '-print-file-name=libclang_rt.fuzzer-x86_64.a']
    return Path(subprocess.run(say, capture_output=True, text=True).stdout.strip()).is_absolute()


@pytest.mark.skipif(not has_libfuzzer(), reason='clang with libFuzzer is needed')
def test_a_few_seconds_of_libfuzzer_pass(tmp_path):
    done = run('fuzz_decoder.py', '--seconds', '5', '--corpus', tmp_path / 'corpus')
    assert done.returncode == 0, done.stderr
    assert int(re.search(r'number_of_executed_units: (\d+)', done.stderr)[1]) > 76
    assert not [path.name for path in (tmp_path / 'corpus').iterdir() if path.name.startswith(('crash-', 'leak-'))]
