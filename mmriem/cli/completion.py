"""`mmriem completion`: what a shell needs to complete the commands and options of mmriem."""

from __future__ import annotations

import argparse
from importlib import import_module

import shtab

from . import DOCTOR, commands

DESCRIPTION = """\
Print what makes a shell complete the commands and options of mmriem when Tab is pressed.

It is made once: after an update of mmriem make it again."""
EPILOG = """\
examples:
  mmriem completion bash > ~/.local/share/bash-completion/completions/mmriem
  mmriem completion zsh > DIR/_mmriem                  # DIR: a folder of $fpath
"""
FILES = ('config', 'checkpoint', 'original', 'compressed', 'file', 'out')
"""Arguments that are the path of a file."""


def parser(prog: str | None = None) -> argparse.ArgumentParser:
    """What the command line may hold."""
    found = argparse.ArgumentParser(
        prog, description=DESCRIPTION, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    found.add_argument('shell', choices=shtab.SUPPORTED_SHELLS, help='which shell it is for')
    return found


def command(args: argparse.Namespace) -> None:
    """Print what the command line asks for."""
    print(shtab.complete(whole_parser(), args.shell))


def whole_parser() -> argparse.ArgumentParser:
    """One parser with all commands, each with its options if the packages that it needs are there."""
    found = argparse.ArgumentParser('mmriem')
    each = found.add_subparsers(dest='command')
    for name, told in commands().items():
        try:
            module = import_module('mmriem.doctor' if name == DOCTOR else f'mmriem.cli.{name.replace("-", "_")}')
        except ModuleNotFoundError:
            each.add_parser(name, help=told)
            continue
        its = module.parser(f'mmriem {name}')
        _say_paths(its)
        each.add_parser(name, help=told, parents=[its], add_help=False)
    return found


def _say_paths(its: argparse.ArgumentParser) -> None:
    for action in its._actions:
        if action.metavar == 'DIR':
            action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
        elif action.dest in FILES:
            action.complete = shtab.FILE  # type: ignore[attr-defined]
