"""The command `mmriem`: one door to everything that a user does with it, `mmriem COMMAND ...`.

Each command is a module of this package with `parser(prog)`, which describes its command line, and `command(args)`,
which does the work. They are imported when they are called: looking into a file needs torch alone. The scripts in
`tools/` call the same modules.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from difflib import get_close_matches
from importlib import import_module
from importlib.util import find_spec

from mmriem.version import __version__

__all__ = ['call', 'main']

GROUPS = {
    'Compress a detector': {
        'compress': 'shrink a trained detector or classifier without data',
        'test': 'evaluate it before and after, with the flags of mmdet',
    },
    'Judge a file': {
        'agree': 'how far it agrees with the original, without labels',
        'inspect': 'what a .riem file holds: weights, bits, settings, hashes',
    },
    'Use a file elsewhere': {
        'convert-back': 'a stock .pth checkpoint of a .riem file',
        'export': 'a .pth checkpoint or an ONNX model of it',
    },
    'Train': {
        'train': 'train a detector, or fine-tune a compressed one, with the flags of mmdet',
    },
}
ENVIRONMENT = {'completion': 'what a shell needs to complete commands and options'}
DOCTOR = 'doctor'
"""Command with a module of its own, as any package may be missing where it runs; `main(arguments)` gives the status."""
EXAMPLES = (
    ('mmriem compress cfg.py ckpt.pth --out out/', 'out/ckpt.riem, a config that loads it, a report'),
    ('mmriem test out/ckpt.py out/ckpt.riem', 'its mAP'),
    ('mmriem agree cfg.py ckpt.pth out/ckpt.riem', 'does it still find the same?'),
    ('mmriem compress cfg.py ckpt.pth --bits 4 2 1', 'several sizes and a table to choose by'),
    ('mmriem inspect out/ckpt.riem', 'what is in it'),
)
THIRD_PARTIES = ('cv2', 'mmcv', 'mmdet', 'mmengine', 'onnx', 'onnxscript', 'pycocotools', 'rich', 'shtab', 'torch')
"""Packages that a command may need and an environment may lack."""
HARMLESS = (
    'pkg_resources is deprecated',  # mmengine, mmcv
    r'`?torch\.cuda\.amp\.',  # mmdet, mmcv
    r'torch\.meshgrid: in an upcoming release',  # mmdet
    r'.*instance named of .* has been created',  # mmengine
    r"Failed to add <class '.*VisBackend'>",  # mmengine
)
"""How warnings begin that other packages give of themselves, and that a user can do nothing about."""


def main(arguments: Sequence[str] | None = None) -> None:
    """The program `mmriem`; `arguments` are those of the command line by default."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    first = arguments[0] if arguments else ''
    if first in ('-h', '--help', 'help'):
        print(overview())
    elif first in ('-V', '--version'):
        print(f'mmriem {__version__}')
    elif first == DOCTOR and DOCTOR in commands():
        sys.exit(import_module(f'mmriem.{DOCTOR}').main(arguments[1:], prog=f'mmriem {DOCTOR}'))
    elif first in commands():
        call(first, arguments[1:], prog=f'mmriem {first}')
    else:
        print(_unknown(first) if first else overview(), file=sys.stderr)
        sys.exit(2)


def call(name: str, arguments: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Run a command as a program that ends here, with a line on stderr where something is to be put right.

    Args:
        name: of the command.
        arguments: of its command line; those of this program by default.
        prog: what its help calls it; by default this program's name.
    """
    if not sys.warnoptions:  # whoever asks for warnings gets them
        for message in HARMLESS:
            warnings.filterwarnings('ignore', message)
    try:
        module = import_module(f'mmriem.cli.{name.replace("-", "_")}')
        from mmriem.program import run
    except ModuleNotFoundError as error:
        package = (error.name or '').partition('.')[0]
        if package not in THIRD_PARTIES:
            raise
        more = f', and see mmriem {DOCTOR}' if DOCTOR in commands() else ''
        sys.exit(f'error: mmriem {name} needs the package {package}, found none; install it{more}')
    args = module.parser(prog).parse_args(arguments)
    run(lambda: module.command(args))


def commands() -> dict[str, str]:
    """What each command does, by its name."""
    return {name: told for group in _groups().values() for name, told in group.items()}


def _groups() -> dict[str, dict[str, str]]:
    if find_spec(f'mmriem.{DOCTOR}') is None:
        return {**GROUPS, 'Environment': ENVIRONMENT}
    return {**GROUPS, 'Environment': {DOCTOR: 'what is installed, and what is missing', **ENVIRONMENT}}


def overview() -> str:
    """The help of `mmriem` itself."""
    lines = ['usage: mmriem COMMAND ...', '', 'Shrinks trained MMDetection detectors without data.']
    for title, group in _groups().items():
        lines += ['', f'{title}:', *(f'  {name:14}{told}' for name, told in group.items())]
    width = max(len(line) for line, _ in EXAMPLES)
    lines += ['', 'Examples:', *(f'  {line:{width}}  # {told}' for line, told in EXAMPLES)]
    return '\n'.join([*lines, '', 'mmriem COMMAND --help has the options of a command; mmriem --version'])


def _unknown(name: str) -> str:
    close = get_close_matches(name, commands(), n=1)
    hint = f'did you mean {close[0]}?' if close else 'mmriem --help lists them'
    return f'error: {name!r}: expected a command among {", ".join(commands())}; {hint}'
