"""How a file came about, for its report: version, date, command, the rule that decided its size, environment."""

from __future__ import annotations

import os
import platform
import shlex
import sys
from collections.abc import Mapping
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from mmriem.core.pipeline.solve_steps import DEFAULT_ERRORS, DEFAULT_SIZE, DEFAULT_TUNED_ERROR
from mmriem.version import __version__

__all__ = ['made', 'rule']

PACKAGES = ('torch', 'numpy', 'mmengine', 'mmcv', 'mmdet')
SLACK = 1.001
"""A search that meets a bound ends that close to it."""


def made(report: Mapping[str, Any]) -> dict[str, str]:
    """Texts by their names; the date and the command are those of now."""
    return {
        'mmriem': __version__,
        'date': datetime.now().astimezone().isoformat(timespec='seconds'),
        'command': command_line(sys.argv),
        'size': rule(report['settings'], report['totals']),
        'environment': environment(),
    }


def rule(settings: Mapping[str, Any], totals: Mapping[str, Any]) -> str:
    """What decided the size of a file.

    Args:
        settings, totals: of its report.

    >>> rule({'bits': 2.0}, {})
    'asked for: --bits 2'
    >>> rule({}, {'ratio': 0.05, 'predicted_error': 0.025, 'tuning': None})
    'none asked for: as small as keeps the predicted error at 0.025'
    """
    if settings.get('states') == 'as trained':
        return 'the states of the trained model, as they are'
    for key in ('bits', 'ratio', 'size', 'tolerance'):
        if key in settings:
            return f'asked for: --{key} {settings[key]:g}' if key != 'size' else f'asked for: --size {settings[key]}'
    error, share = totals['predicted_error'], round(1 / DEFAULT_SIZE)
    if error is not None and error <= SLACK * DEFAULT_ERRORS[0]:
        return f'none asked for: as small as keeps the predicted error at {DEFAULT_ERRORS[0]:g}'
    if totals['ratio'] <= SLACK * DEFAULT_SIZE:
        return f'none asked for: 1/{share} of fp32, as a predicted error of {DEFAULT_ERRORS[0]:g} takes more than that'
    most = DEFAULT_TUNED_ERROR if totals['tuning'] else DEFAULT_ERRORS[1]
    return f'none asked for: as small as keeps the predicted error at {most:g}, as 1/{share} of fp32 exceeds that'


def command_line(arguments: list[str]) -> str:
    """What was typed, about.

    >>> command_line(['/env/bin/mmriem', 'compress', 'a b.py'])
    "mmriem compress 'a b.py'"
    >>> command_line(['/env/mmriem/__main__.py', 'test'])
    'python -m mmriem test'
    """
    program = Path(arguments[0])
    if program.name == '__main__.py':
        first = ['python', '-m', 'mmriem']
    elif program.suffix == '.py':
        first = ['python', str(program)]
    else:
        first = [program.name]
    return shlex.join([*first, *arguments[1:]])


def environment() -> str:
    """Python, packages and machine, in a line."""
    found = [f'Python {platform.python_version()}']
    for name in PACKAGES:
        try:
            found.append(f'{name} {version(name)}')
        except PackageNotFoundError:
            continue  # of another name in another fork, or not needed
    return ', '.join([*found, f'{platform.system()} {platform.machine()}, {os.cpu_count()} cores'])
