"""Rows of figures as CSV and Markdown, with the command and the machine that they come from."""

from __future__ import annotations

import csv
import os
import platform
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

__all__ = ['cells', 'command_and_machine', 'machine', 'markdown', 'write_csv']


def cells(row: Mapping[str, Any], columns: Mapping[str, str]) -> list[str]:
    """A row as text, a hyphen where it has no figure; `columns` gives a format for each key.

    >>> cells({'bytes': 1234, 'mAP': None}, {'bytes': '{:,}', 'mAP': '{:.3f}'})
    ['1,234', '-']
    """
    return ['-' if row[key] is None else form.format(row[key]) for key, form in columns.items()]


def markdown(rows: Iterable[Mapping[str, Any]], columns: Mapping[str, str]) -> str:
    """The rows as a table of Markdown, with a newline at its end."""
    lines = [list(columns), ['---'] * len(columns), *(cells(row, columns) for row in rows)]
    return ''.join(f'| {" | ".join(line)} |\n' for line in lines)


def write_csv(rows: Sequence[Mapping[str, Any]], columns: Iterable[str], path: str | os.PathLike) -> None:
    """The rows as CSV, figures in full."""
    with open(path, 'w', newline='', encoding='utf-8') as file:
        writer = csv.DictWriter(file, list(columns))
        writer.writeheader()
        writer.writerows(rows)


def command_and_machine() -> str:
    """Two paragraphs of Markdown: the command that runs, and what it runs on."""
    return f'`python {" ".join(sys.argv)}`\n\n{machine()}\n'


def machine() -> str:
    """What figures are measured on, in a line."""
    return (
        f'{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}, Python {platform.python_version()}'
    )
