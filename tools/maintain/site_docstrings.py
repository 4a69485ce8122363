"""Extension of griffe, named in mkdocs.yml: docstrings as Markdown.

Doctests become blocks of code, and roles such as ``:class:`a.b.Name` `` plain names.
"""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension

ROLE = re.compile(r':(?:class|func|meth|mod):`~?([^`]+)`')


class Markdown(Extension):
    """Rewrites each docstring before it is parsed."""

    def on_instance(self, *, obj: Any, **_: Any) -> None:
        """Called by griffe for each module, class, function and attribute."""
        if obj.docstring:
            obj.docstring.value = as_markdown(obj.docstring.value)


def as_markdown(text: str) -> str:
    """A docstring whose doctests are fenced."""
    lines: list[str] = []
    within = False
    for line in ROLE.sub(r'`\1`', text).splitlines():
        begins = line.lstrip().startswith('>>>')
        if begins and not within:
            margin = line[: len(line) - len(line.lstrip())]
            lines.append(f'{margin}```pycon')
            within = True
        elif within and not line.strip():
            lines.append(f'{margin}```')
            within = False
        lines.append(line)
    return '\n'.join([*lines, f'{margin}```'] if within else lines)
