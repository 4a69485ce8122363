"""The terminal as it is: names of layers and paths may hold brackets and colons, which are text and not markup."""

from __future__ import annotations

import sys

from rich.console import Console

__all__ = ['plain_console']


def plain_console(width: int) -> Console:
    """Prints tables and text to stdout word for word.

    Args:
        width: in characters, where stdout is no terminal, whose own width counts.
    """
    return Console(width=None if sys.stdout.isatty() else width, markup=False, emoji=False, highlight=False)
