#!/usr/bin/env python
"""Run the tests in environments of other versions of Python, torch and mm*, and note the results in docs/install.md.

    python tools/maintain/test_matrix.py                 # all of them: gigabytes of downloads and hours
    python tools/maintain/test_matrix.py torch-2.1       # one

Each environment is made in a folder of its own and kept there. mmriem is installed into it as a user would, with what
it needs and without, and no version of what was there may change. Then the tests of core, engine and tools are run, and
the demo detector is compressed at one bit per weight and evaluated. The interpreters must be installed.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / 'docs' / 'install.md'
START, END = '<!-- test_matrix.py writes from here -->', '<!-- to here -->'
TESTS = ('tests/core', 'tests/engine', 'tests/tools')
TOOLS = ('wheel', 'ninja', 'pytest', 'hypothesis', 'scikit-learn', 'constriction==0.5.0', 'safetensors')
CONFIG = 'gfl_r18_fpn_digits'


@dataclass(frozen=True)
class Environment:
    """What is installed before mmriem.

    Attributes:
        python: the interpreter's version.
        packages: with their versions, torch first; without mmcv.
        mmcv: the mmcv that is built for them.
        stack: the extra of setup.py.
    """

    python: str
    packages: tuple[str, ...]
    mmcv: str
    stack: str = 'openmmlab'


OPENMMLAB = ('mmengine==0.10.7', 'mmdet==3.3.0')
ENVIRONMENTS = {
    'torch-2.1': Environment(
        '3.10', ('torch==2.1.2', 'numpy==1.26.4', 'setuptools<70', 'opencv-python<4.12', *OPENMMLAB), 'mmcv==2.1.0'
    ),
    'torch-2.0': Environment(
        '3.10',
        ('torch==2.0.1', 'numpy==1.24.4', 'setuptools<70', 'opencv-python<4.12', 'mmengine==0.10.7', 'mmdet==3.0.0'),
        'mmcv==2.0.1',
    ),
    'torch-2.13': Environment('3.11', ('torch==2.13.0', 'numpy==2.4.6', 'setuptools<82', *OPENMMLAB), 'mmcv==2.1.0'),
    'onedl': Environment(
        '3.11',
        ('torch==2.13.0', 'numpy==2.2.6', 'setuptools<82', 'onedl-mmengine==0.10.12', 'onedl-mmdetection==3.5.1'),
        'onedl-mmcv==2.3.6',
        'onedl',
    ),
    'python-3.13': Environment(
        '3.13',
        ('torch==2.14.1', 'numpy==2.4.6', 'setuptools<82', 'onedl-mmengine==0.10.12', 'onedl-mmdetection==3.5.1'),
        'onedl-mmcv==2.3.6',
        'onedl',
    ),
}


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split('\n\n')[0])
    parser.add_argument('names', nargs='*', metavar='NAME', help=f'of {", ".join(ENVIRONMENTS)} (default: all)')
    parser.add_argument('--folder', type=Path, default=ROOT / '.venv-matrix', help='of the environments')
    args = parser.parse_args(argv)
    unknown = [name for name in args.names if name not in ENVIRONMENTS]
    if unknown:
        parser.error(f'{unknown[0]}: no such environment; there are {", ".join(ENVIRONMENTS)}')
    return args


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    failed = False
    for name in args.names or ENVIRONMENTS:
        row = run_environment(name, ENVIRONMENTS[name], args.folder / name)
        failed = failed or bool(row['failed'] or row['changed'])
        note(PAGE, name, row)
    return int(failed)


def run_environment(name: str, environment: Environment, folder: Path) -> dict:
    """Make it, install into it, test, compress: one row of the table."""
    python = make(environment, folder)
    before = freeze(python)
    changed = set()
    for flags, what in ((['--no-deps'], str(ROOT)), ([], f'{ROOT}[{environment.stack}]')):
        call(python, '-m', 'pip', 'install', '--no-build-isolation', *flags, what)
        after = freeze(python)
        changed |= {package for package in before if before[package] != after.get(package)}
    call(python, 'setup.py', '-q', 'build_ext', '--inplace')
    out = folder / 'out'
    shutil.rmtree(out, ignore_errors=True)
    call(python, 'tools/maintain/make_digits.py')
    call(python, 'tools/compress.py', f'configs/demo/{CONFIG}.py', f'demo/{CONFIG}.pth', '--bits', '1', '--out', out)
    tested = call(python, 'tools/test.py', out / f'{CONFIG}.py', out / f'{CONFIG}.riem', '--work-dir', out / 'work')
    passed, failed = counts(call(python, '-m', 'pytest', '-p', 'no:cacheprovider', *TESTS, check=False))
    versions = ', '.join(package for package in environment.packages if '==' in package)
    return {
        'environment': f'Python {environment.python}, {versions}, {environment.mmcv}'.replace('==', ' '),
        'passed': passed,
        'failed': failed,
        'changed': sorted(changed),
        'bytes': (out / f'{CONFIG}.riem').stat().st_size,
        'mAP': map_of(tested),
        'run': time.strftime('%Y-%m-%d'),
    }


def make(environment: Environment, folder: Path) -> Path:
    """The interpreter of the environment, which is made where it is not there."""
    python = folder / 'bin' / 'python'
    if not (folder / 'ready').exists():
        interpreter = shutil.which(f'python{environment.python}')
        if interpreter is None:
            sys.exit(f'python{environment.python}: not found on PATH; install it')
        subprocess.run([interpreter, '-m', 'venv', '--clear', folder], check=True)
        torch = [package for package in environment.packages if package.startswith(('torch', 'numpy', 'setuptools'))]
        call(python, '-m', 'pip', 'install', *torch, *TOOLS)
        call(python, '-m', 'pip', 'install', '--no-build-isolation', *environment.packages)
        wheel = call(python, 'tools/maintain/build_mmcv.py', environment.mmcv).strip().splitlines()[-1]
        call(python, '-m', 'pip', 'install', wheel, *torch)
        (folder / 'ready').touch()
    return python


def call(python: Path, *arguments: object, check: bool = True) -> str:
    """Run Python in the repository's folder; its output, which is shown where it fails."""
    print('$', python, *arguments, flush=True)
    env = {**os.environ, 'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1', 'OMP_WAIT_POLICY': 'PASSIVE'}
    done = subprocess.run(
        [*map(str, (python, *arguments))], cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True, check=False
    )
    if check and done.returncode:
        sys.exit(f'{done.stdout}\n{arguments[0]} ended with exit status {done.returncode}')
    return done.stdout


def freeze(python: Path) -> dict[str, str]:
    """Versions by package, without mmriem."""
    listed = json.loads(call(python, '-m', 'pip', '--disable-pip-version-check', 'list', '--format', 'json'))
    return {package['name']: package['version'] for package in listed if package['name'] != 'mmriem'}


def counts(output: str) -> tuple[int, int]:
    """Passed and failed tests in what pytest printed.

    >>> counts('==== 3 failed, 40 passed, 2 errors in 1.2s ====')
    (40, 5)
    """
    found = dict.fromkeys(('passed', 'failed', 'error'), 0)
    for count, kind in re.findall(r'(\d+) (passed|failed|error)', output):
        found[kind] = int(count)
    return found['passed'], found['failed'] + found['error']


def map_of(output: str) -> str:
    """The box mAP in per cent that a test run printed."""
    found = re.findall(r'bbox_mAP: (\d\.\d+)', output)
    return f'{100 * float(found[-1]):.1f}' if found else '?'


def note(page: Path, name: str, row: dict) -> None:
    """Put a row into the table of the page, in the place of the one with the same name."""
    before, rest = page.read_text(encoding='utf-8').split(START)
    table, after = rest.split(END)
    lines = [line for line in table.strip().splitlines() if not line.startswith(f'| `{name}` |')]
    tests = f'{row["passed"]} passed, {row["failed"]} failed'
    kept = ', '.join(row['changed']) or 'nothing'
    lines.append(
        f'| `{name}` | {row["environment"]} | {tests} | {kept} | {row["bytes"]:,} | {row["mAP"]} | {row["run"]} |'
    )
    page.write_text(f'{before}{START}\n' + '\n'.join(lines) + f'\n{END}{after}', encoding='utf-8')


if __name__ == '__main__':
    sys.exit(main())
