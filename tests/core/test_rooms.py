"""The rooms of the core: imports go down only, no file is long, tests stand where their subjects do."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import mmriem.core

CORE = Path(mmriem.core.__file__).parent
ROOMS = (
    *('coding', 'weights', 'execution', 'representations', 'images', 'metric'),
    *('budget', 'file', 'correction', 'live', 'pipeline'),
)
"""From the lowest to the highest."""
FILES = sorted(path for path in CORE.rglob('*.py'))
MOST_LINES = 460


def room_of(parts: tuple[str, ...]) -> str | None:
    """The room of a module below `mmriem.core`; None for the few that all rooms share."""
    return parts[0] if parts and parts[0] in ROOMS else None


def imported(path: Path) -> set[tuple[str, ...]]:
    """Modules below `mmriem.core` that a file imports, absolute or relative, as parts of their names."""
    package, found = path.relative_to(CORE).parent.parts, set()
    for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = ('mmriem', 'core', *package)[: len(package) + 3 - node.level]
            names = (*base, *(node.module or '').split('.')) if node.module else base
        elif isinstance(node, ast.ImportFrom):
            names = tuple(node.module.split('.'))
        elif isinstance(node, ast.Import):
            names = next((tuple(a.name.split('.')) for a in node.names if a.name.startswith('mmriem.core')), ())
        else:
            continue
        if names[:2] == ('mmriem', 'core'):
            found |= {(*names[2:], alias.name) for alias in node.names}
    return found


def test_every_folder_of_the_core_is_a_room():
    assert {path.name for path in CORE.iterdir() if path.is_dir() and path.name != '__pycache__'} == set(ROOMS)


@pytest.mark.parametrize('path', FILES, ids=lambda path: str(path.relative_to(CORE)))
def test_imports_go_down_only(path):
    own = room_of(path.relative_to(CORE).parts)
    if own is None and path.parent == CORE:
        if path.name != '__init__.py':
            assert not {room_of(names) for names in imported(path)} - {None}
        return
    for names in imported(path):
        room = room_of(names)
        assert room is None or ROOMS.index(room) <= ROOMS.index(own), f'{path}: {".".join(names)}'


@pytest.mark.parametrize('path', FILES, ids=lambda path: str(path.relative_to(CORE)))
def test_no_file_is_long(path):
    assert len(path.read_text(encoding='utf-8').splitlines()) <= MOST_LINES


@pytest.mark.parametrize('room', ROOMS)
def test_each_room_says_what_lives_there_and_has_tests(room):
    text = (CORE / room / '__init__.py').read_text(encoding='utf-8')
    assert ast.get_docstring(ast.parse(text)) and 'Imports' in text and len(text.splitlines()) <= 20
    assert list((Path(__file__).parent / room).rglob('test_*.py'))
