"""Says what an environment holds, and what is wrong with it: ``python -m mmriem.doctor``.

Nothing is imported before it is looked at, so this runs where torch, mmcv or mmriem's own parts do not.
"""

from __future__ import annotations

import argparse
import importlib
import platform
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from types import ModuleType

__all__ = ['Finding', 'examine', 'main']

TRIED = {'python': ((3, 10), (3, 13)), 'torch': ((2, 0), (2, 14)), 'numpy': ((1, 24), (2, 4))}
"""The first and the last version that mmriem is for. What was really run with which is in docs/install.md."""

ALIKE = {'mmengine': 'onedl-mmengine', 'mmcv': 'onedl-mmcv', 'mmdet': 'onedl-mmdetection'}
"""Packages of OpenMMLab and their forks, which install modules of the same names."""


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        name: of what was looked at.
        found: what is there.
        problem: what is wrong, in a sentence; empty where nothing is.
        remedy: what to do about it.
        needed: whether mmriem does not do without it; otherwise the problem is a remark.
    """

    name: str
    found: str
    problem: str = ''
    remedy: str = ''
    needed: bool = True

    @property
    def mark(self) -> str:
        """How it stands, in a word."""
        return 'ok' if not self.problem else 'WRONG' if self.needed else 'note'


EPILOG = """\
examples:
  mmriem doctor                                        # for mmriem itself, and what of mm* is there
  mmriem doctor --detectors                            # mmdet, mmcv and mmengine have to be there
"""


def parser(prog: str | None = None) -> argparse.ArgumentParser:
    """What the command line may hold."""
    found = argparse.ArgumentParser(
        prog,
        description='Say what this environment holds, what is wrong with it, and what to do.',
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    found.add_argument(
        '--detectors', action='store_true', help='mmdet, mmcv and mmengine are needed, as the tools for detectors do'
    )
    return found


def main(argv: Sequence[str] | None = None, prog: str = 'python -m mmriem.doctor') -> int:
    """Print the report; the exit status is 1 where something is wrong."""
    args = parser(prog).parse_args(argv)
    findings = examine(args.detectors)
    width = max(len(finding.name) for finding in findings)
    for finding in findings:
        print(f'{finding.mark:5}  {finding.name:{width}}  {finding.found}')
        if finding.problem:
            print(f'{"":{width + 9}}{finding.problem}; {finding.remedy}')
    wrong = sum(finding.mark == 'WRONG' for finding in findings)
    print(f'{wrong} of {len(findings)} wrong' if wrong else 'nothing is wrong')
    return 1 if wrong else 0


def examine(detectors: bool = False) -> list[Finding]:
    """Look at the environment that this Python runs in.

    Args:
        detectors: take a missing mmengine, mmcv or mmdet for wrong; otherwise it is a remark.
    """
    return [
        _python(),
        _torch(),
        _numpy(),
        *(_small(name) for name in ('constriction', 'safetensors')),
        _compiled(),
        _mm('mmengine', detectors, _registry_root),
        _mm('mmcv', detectors, _run_ops),
        _mm('mmdet', detectors, None),
        _registries(detectors),
        *_readers(detectors),
    ]


def _python() -> Finding:
    found = f'{platform.python_version()} ({sys.executable})'
    return Finding('Python', found, *_outside('python', '.'.join(map(str, sys.version_info[:2]))))


def _torch() -> Finding:
    module, problem = _import('torch')
    if module is None:
        return Finding('torch', *problem, 'install PyTorch, see docs/install.md')
    device = f'CUDA {module.version.cuda}' if module.version.cuda else 'CPU build'
    device += f', {module.cuda.device_count()} GPU(s)' if module.cuda.is_available() else ', no GPU in use'
    return Finding('torch', f'{module.__version__} ({device})', *_outside('torch', module.__version__), needed=False)


def _numpy() -> Finding:
    module, problem = _import('numpy')
    if module is None:
        return Finding('numpy', *problem, 'install numpy')
    torch, _ = _import('torch')
    if torch is not None:
        try:
            torch.from_numpy(module.zeros(1)).numpy()
        except (RuntimeError, TypeError) as error:
            return Finding(
                'numpy', module.__version__, f'torch {torch.__version__} does not work with it ({_line(error)})',
                'install numpy below 2 beside a torch below 2.3',
            )  # fmt: skip
    return Finding('numpy', module.__version__, *_outside('numpy', module.__version__), needed=False)


def _small(name: str) -> Finding:
    module, problem = _import(name)
    if module is None:
        return Finding(name, *problem, f'pip install {name}')
    return Finding(name, _version(name) or 'of unknown version')


def _compiled() -> Finding:
    """The extension modules that lie in the package: each must load."""
    root = Path(__file__).parent
    names, broken = [], ''
    for path in sorted(root.rglob('*')):
        stem = path.name.partition('.')[0]
        if path.name[len(stem) :] in EXTENSION_SUFFIXES:  # not one for another Python
            names.append('.'.join(['mmriem', *path.relative_to(root).parts[:-1], stem]))
            module, problem = _import(names[-1])
            broken = broken or ('' if module else problem[1])
    if names:
        return Finding('compiled code', ', '.join(names), broken, 'install mmriem again')
    return Finding(
        'compiled code', 'none', 'decoding takes several times as long', 'install mmriem again with a C compiler',
        needed=False,
    )  # fmt: skip


def _mm(name: str, needed: bool, check: Callable[[ModuleType], str] | None) -> Finding:
    """A package of OpenMMLab or its fork."""
    installed = [dist for dist in (name, ALIKE[name]) if _version(dist)]
    found = ' and '.join(f'{dist} {_version(dist)}' for dist in installed) or 'not installed'
    if len(installed) > 1:
        remedy = f'pip uninstall {" ".join(installed)}, then install one of them'
        return Finding(name, found, 'both install the same modules', remedy)
    if not installed and _version(f'{name}-lite'):
        found = f'{name}-lite, which has no ops'
    module, problem = _import(name)
    if module is None:
        needed = needed or bool(installed)
        return Finding(name, found, problem[1], 'see docs/install.md', needed=needed)
    try:
        found += f' ({check(module)})' if check else ''
    except Exception as error:  # whatever a broken build raises
        remedy = 'build it for the torch that is installed: tools/maintain/build_mmcv.py'
        return Finding(name, found, f'does not run ({_line(error)})', remedy if name == 'mmcv' else 'install it again')
    return Finding(name, found)


def _registry_root(_: ModuleType) -> str:
    importlib.import_module('mmengine.registry')
    importlib.import_module('mmengine.runner')
    return 'runs'


def _run_ops(_: ModuleType) -> str:
    """One compiled op, on each kind of device that is there."""
    torch, ops = importlib.import_module('torch'), importlib.import_module('mmcv.ops')
    boxes = torch.tensor([[0.0, 0.0, 9.0, 9.0], [1.0, 1.0, 9.0, 9.0], [20.0, 20.0, 29.0, 29.0]])
    devices = ['cpu', *(['cuda'] if torch.cuda.is_available() else [])]
    for device in devices:
        kept = ops.nms(boxes.to(device), torch.tensor([0.9, 0.8, 0.7], device=device), 0.5)[1].tolist()
        if kept != [0, 2]:
            raise RuntimeError(f'nms on {device} kept boxes {kept}, expected [0, 2]')
    return f'its ops run on {" and ".join(devices)}'


def _registries(needed: bool) -> Finding:
    """That a config finds mmriem's classes, and MMEngine a reader for `.riem`."""
    name = 'registries'
    if _import('mmengine')[0] is None:
        return Finding(name, 'not looked at', 'they are made with mmengine', 'install it', needed=needed)
    try:
        models = importlib.import_module('mmriem.registry').MODELS
        importlib.import_module('mmriem.engine')
        loader = importlib.import_module('mmengine.runner').CheckpointLoader._get_checkpoint_loader('model.riem')
        classes = ['mmriem.ImageClassifier', *(['mmriem.RieMFPN'] if _import('mmdet')[0] else [])]
        missing = [kind for kind in classes if models.get(kind) is None]
    except Exception as error:  # whatever an older or newer mmengine raises
        return Finding(name, 'none', f'they cannot be read ({_line(error)})', 'see the versions in docs/install.md')
    if missing or not loader.__module__.startswith('mmriem.'):
        absent = ', '.join(missing) or 'a reader of .riem'
        return Finding(name, 'incomplete', f'{absent} is not in them', 'install mmriem again')
    return Finding(name, f'{", ".join(classes)}; .riem files')


def _readers(needed: bool) -> Iterator[Finding]:
    """What evaluation needs, and what MMEngine needs of setuptools."""
    for name, dist, purpose in (('cv2', 'opencv-python', 'images are read'), ('pycocotools', None, 'mAP is computed')):
        module, problem = _import(name)
        found = f'{getattr(module, "__version__", None) or _version(name)}' if module else problem[0]
        trouble = '' if module else f'{purpose} with it'
        yield Finding(name, found, trouble, f'pip install {dist or name}', needed=needed)
    if _version('mmengine') and _import('pkg_resources')[0] is None:
        yield Finding(
            'setuptools', _version('setuptools') or 'not installed', 'mmengine needs its pkg_resources',
            "pip install 'setuptools<82'", needed=needed,
        )  # fmt: skip


def _import(name: str) -> tuple[ModuleType | None, tuple[str, str]]:
    """The module; or what is there instead, and a sentence on it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            return importlib.import_module(name), ('', '')
    except ModuleNotFoundError as error:
        if error.name == name:
            return None, ('not installed', f'{name} is not installed')
        return None, (_version(name) or 'installed', f'it needs {error.name}, which is not installed')
    except Exception as error:  # a broken build raises OSError, AssertionError and others
        return None, (_version(name) or 'installed', f'it cannot be imported ({_line(error)})')


def _version(dist: str) -> str | None:
    try:
        return metadata.version(dist)
    except metadata.PackageNotFoundError:
        return None


def _outside(name: str, version: str) -> tuple[str, str]:
    """Sentence and remedy for a version out of the range that is supported."""
    first, last = TRIED[name]
    numbers = tuple(int(number) for number in re.findall(r'\d+', version)[:2])
    text = f'{".".join(map(str, first))} to {".".join(map(str, last))}'
    if numbers < first:
        return f'mmriem is for {text}', 'install a newer one'
    if numbers > last:
        return f'mmriem was tried with {text} only', 'look at docs/install.md if something fails'
    return '', ''


def _line(error: Exception) -> str:
    return next((line.strip()[:160] for line in str(error).splitlines() if line.strip()), type(error).__name__)


if __name__ == '__main__':
    sys.exit(main())
