#!/usr/bin/env python
"""Build a wheel of mmcv with its compiled ops for the torch that is installed, and print the wheel's path.

    python tools/maintain/build_mmcv.py mmcv==2.1.0

mmcv comes as source: 78 files, each of which reads the same headers of torch for eight seconds. Here they are
compiled as they are, but several in one go: a few *units* that include them. Two files share a unit only where neither
defines a name that the other defines; one that changes what follows it (a macro, `using namespace`) is the last of its
unit. Debug symbols are left out. Where the units do not compile, and where there is a GPU, mmcv is built the ordinary
way, without debug symbols all the same. `check_mmcv.py` compares the ops of two builds.

Wheels are kept in a folder whose name holds what they were compiled for and how: torch, Python, machine, CPU or CUDA,
flags.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

WAYS = ('joined', 'ordinary')
STEP = re.compile(r'\[(\d+)/(\d+)\] ')
"""How ninja counts."""


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split('\n\n')[0])
    parser.add_argument('requirement', help='mmcv==2.1.0, onedl-mmcv==2.3.6, or the path of such a source archive')
    parser.add_argument('--way', choices=WAYS, help='compile in this way only (default: joined, else ordinary)')
    parser.add_argument('--units', type=int, default=4, help='units to compile at least (default: %(default)s)')
    parser.add_argument(
        '--cache', type=Path, default=default_cache(), help='where wheels are kept (default: %(default)s)'
    )
    parser.add_argument('--log', type=Path, help="the compiler's output (default: a temporary file, named on failure)")
    return parser.parse_args(argv)


def default_cache() -> Path:
    return Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache') / 'mmriem' / 'mmcv'


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    ways = [args.way] if args.way else list(WAYS)
    if 'joined' in ways and _has_gpu():
        say('a GPU is there: mmcv is built the ordinary way, with its CUDA ops')
        ways = ['ordinary']
    for way in ways:
        kept = find_wheel(args.cache / built_for(way), args.requirement)
        if kept is not None:
            say(f'{kept.name}: built before, for this torch and this Python')
            print(kept)
            return 0
    log = args.log or Path(tempfile.mkdtemp(prefix='mmcv-')) / 'build.log'
    with tempfile.TemporaryDirectory(prefix='mmcv-') as folder:
        archive = fetch(args.requirement, Path(folder) / 'archive', log)
        for way in ways:
            source = unpack(archive, Path(folder) / way)
            wheel = build(source, args.cache / built_for(way), way, args.units, log)
            if wheel is not None:
                print(wheel)
                return 0
            say(f'the {way} build failed (log: {log})')
    return 1


def say(text: str) -> None:
    print(f'[mmcv] {text}', file=sys.stderr, flush=True)


def built_for(way: str) -> str:
    """The name of the folder of wheels that fit this environment."""
    import torch

    backend = f'cuda{torch.version.cuda}' if _has_gpu() else 'cpu'
    abi = int(torch.compiled_with_cxx11_abi())
    python = f'{sys.implementation.cache_tag}-{sysconfig.get_platform()}-{platform.libc_ver()[1] or "libc"}'
    flags = hashlib.sha256(compiler_flags().encode()).hexdigest()[:8]
    return f'torch{torch.__version__}-abi{abi}-{backend}-{python}-{flags}-{way}'


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available() or os.environ.get('FORCE_CUDA') == '1'


def find_wheel(folder: Path, requirement: str) -> Path | None:
    """The wheel of `NAME==VERSION` in a folder."""
    name, _, version = requirement.partition('==')
    found = sorted(folder.glob(f'{name.replace("-", "_")}-{version}-*.whl')) if version else []
    return found[0] if found else None


def fetch(requirement: str, folder: Path, log: Path) -> Path:
    """The source archive of a requirement, through pip, or the one whose path is given."""
    if Path(requirement).is_file():
        return Path(requirement)
    name = requirement.partition('==')[0]
    command = [sys.executable, '-m', 'pip', '--disable-pip-version-check', 'download', '--no-deps', '-d', str(folder)]
    command += ['--no-binary', name, '--no-build-isolation', requirement]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, 'MMCV_WITH_OPS': '1'})
    log.write_text(done.stdout + done.stderr, encoding='utf-8')
    if done.returncode:
        sys.exit(f'{requirement}: the source could not be fetched (log: {log}); check the network and the version')
    return next(folder.glob('*.tar.gz'))


def unpack(archive: Path, folder: Path) -> Path:
    with tarfile.open(archive) as tar:
        if hasattr(tarfile, 'data_filter'):
            tar.extractall(folder, filter='data')
        else:
            tar.extractall(folder)
    return next(path for path in folder.iterdir() if (path / 'setup.py').is_file())


def build(source: Path, target: Path, way: str, units: int, log: Path) -> Path | None:
    """The wheel in its folder, or None where it could not be built; says every step."""
    made = source / 'wheel'
    made.mkdir()
    env = {**os.environ, 'MMCV_WITH_OPS': '1'}
    env['CFLAGS'] = env['CXXFLAGS'] = compiler_flags()
    env.setdefault(
        'MAX_JOBS', str(len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count())
    )
    if not _has_gpu():
        env['FORCE_CPU'] = '1'
    code = f'import build_mmcv; build_mmcv.build_here({str(made)!r}, {units if way == "joined" else 0})'
    env['PYTHONPATH'] = os.pathsep.join(filter(None, [str(Path(__file__).resolve().parent), env.get('PYTHONPATH')]))
    say(f'compiling {source.name} ({way}) with {env["MAX_JOBS"]} at a time')
    started = time.monotonic()
    with log.open('a', encoding='utf-8') as file, subprocess.Popen(
        [sys.executable, '-u', '-c', code],
        cwd=source, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors='replace',
    ) as process:  # fmt: skip
        for line in process.stdout:
            file.write(line)
            step = STEP.match(line)
            if step:
                say(f'{step[1]} of {step[2]} compiled, {time.monotonic() - started:.0f} s')
    wheels = list(made.glob('*.whl'))
    if process.returncode or not wheels or not has_ops(wheels[0]):
        return None
    target.mkdir(parents=True, exist_ok=True)
    kept = target / wheels[0].name
    shutil.copy2(wheels[0], kept.with_suffix('.tmp'))
    os.replace(kept.with_suffix('.tmp'), kept)
    return kept


def compiler_flags() -> str:
    """Those that Python was built with, less debug symbols. They are named, since recent versions of setuptools take
    what stands in CFLAGS for all flags that are wanted: with `-g0` alone nothing would be optimised.
    """
    own = sysconfig.get_config_var('CFLAGS') or '-O2 -DNDEBUG'
    return f'{own} {os.environ.get("CFLAGS", "")} -g0'


def has_ops(wheel: Path) -> bool:
    """A wheel without its compiled module is no success: some builds make one where torch is not seen."""
    import zipfile

    return any(name.startswith('mmcv/_ext.') for name in zipfile.ZipFile(wheel).namelist())


def build_here(target: str, units: int) -> None:
    """Build the wheel of the source tree in the working directory; its own setup.py says of which files."""
    import setuptools
    from setuptools import build_meta

    original = setuptools.setup

    def setup(**settings):
        for extension in settings.get('ext_modules') or ():
            if units:
                extension.sources = join(extension.sources, Path('build') / 'units', units)
        return original(**settings)

    setuptools.setup = setup
    sys.path.insert(0, os.getcwd())
    build_meta.build_wheel(target)


def join(sources: Iterable[str], folder: Path, units: int) -> list[str]:
    """Write the units that include all sources, and return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number, group in enumerate(grouped([Path(source) for source in sources], units)):
        path = folder / f'unit_{number}.cpp'
        lines = [f'#include "{os.path.relpath(source, folder)}"\n' for source in group]
        path.write_text(''.join(lines), encoding='utf-8')
        paths.append(str(path))
    return paths


def grouped(sources: Iterable[Path], units: int) -> list[list[Path]]:
    """Sources by unit, of about equal length; more units than asked for where names clash."""
    texts = {path: compiled_text(path.read_text(encoding='utf-8')) for path in sources}
    groups: list[list[Path]] = [[] for _ in range(units)]
    names: list[set[str]] = [set() for _ in range(units)]
    for path in sorted(texts, key=lambda path: (-len(texts[path]), path.as_posix())):
        own, leaves = defined_names(texts[path]), leaves_something(texts[path])
        fitting = [
            n
            for n, group in enumerate(groups)
            if not names[n] & own and not (leaves and any(leaves_something(texts[other]) for other in group))
        ]
        if not fitting:
            groups.append([])
            names.append(set())
            fitting = [len(groups) - 1]
        chosen = min(fitting, key=lambda n: sum(len(texts[other]) for other in groups[n]))
        groups[chosen].append(path)
        names[chosen] |= own
    return [sorted(group, key=lambda path: leaves_something(texts[path])) for group in groups if group]


def compiled_text(text: str) -> str:
    """C++ without comments and without what stands between ``#ifdef MMCV_WITH_...`` and its end: other devices."""
    comment = re.compile(r'//[^\n]*|/\*.*?\*/|("(?:\\.|[^"\\\n])*")', re.DOTALL)
    kept, conditions = [], []  # of each #if around a line: whether what follows it is read
    for line in comment.sub(lambda found: found[1] or ' ', text).splitlines():
        directive = re.match(r'\s*#\s*(if|else|elif|endif)', line)
        if directive is None:
            if all(conditions):
                kept.append(line)
        elif directive[1] == 'if':
            conditions.append(re.match(r'\s*#\s*ifdef\s+MMCV_WITH_', line) is None)
        elif directive[1] == 'endif':
            conditions.pop()
        else:
            conditions[-1] = True
    return '\n'.join(kept)


def leaves_something(text: str) -> bool:
    r"""Whether a file changes how the text after it is read.

    >>> leaves_something('#define max(a, b) a')
    True
    >>> leaves_something('#define ONCE 1\n#undef ONCE')
    False
    """
    macros = set(re.findall(r'^\s*#\s*define\s+(\w+)', text, re.MULTILINE))
    macros -= set(re.findall(r'^\s*#\s*undef\s+(\w+)', text, re.MULTILINE))
    return bool(macros) or re.search(r'^using\s', text, re.MULTILINE) is not None


def defined_names(text: str) -> set[str]:
    """Functions, classes, enumerations and variables that a C++ file defines outside of all braces.

    Namespaces are looked into. Reads the text, does not compile it: a name too many costs time, one too few shows
    as an error of the compiler.

    >>> sorted(defined_names('template <class T> T up(T a) { return a; } struct Box { int x; }; const int SIZE = 3;'))
    ['Box', 'SIZE', 'up']
    """
    text = re.sub(r'^\s*#(?:\\\n|[^\n])*', '', text, flags=re.MULTILINE)
    text = re.sub(r'\bnamespace\s*\w*\s*\{', '', text)  # its closing brace is let pass below
    names, depth, head = set(), 0, ''
    for part in re.split(r'([{};])', text):
        if part == '{':
            if depth == 0:
                names |= _name_of(head, body=True)
            depth += 1
        elif part == '}':
            depth = max(depth - 1, 0)
            head = ''
        elif part == ';':
            if depth == 0:
                names |= _name_of(head, body=False)
            head = ''
        elif depth == 0:
            head = part
    return names


def _name_of(head: str, body: bool) -> set[str]:
    """What a declaration without its braces defines: a function needs a body to be one."""
    head = re.sub(r'<[^<>]*>', ' ', re.sub(r'<[^<>]*>', ' ', head))
    kind = re.search(r'\b(?:struct|class|enum)\s+(\w+)[^()]*$', head)
    if kind:
        return {kind[1]} if body else set()
    call = re.search(r'([\w~]+)\s*\(', head)
    if call:
        return {call[1]} if body else set()
    variable = re.search(r'(\w+)\s*(?:\[[^\]]*\]\s*)?=', head)
    return {variable[1]} if variable else set()


if __name__ == '__main__':
    sys.exit(main())
