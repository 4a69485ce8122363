"""The rooms of the core: imports go down only, no file is long, each room says what it is and has tests."""

from __future__ import annotations

import ast
import runpy
from pathlib import Path

import pytest

PICTURE = runpy.run_path(str(Path(__file__).parents[2] / 'tools' / 'maintain' / 'draw_rooms.py'))
CORE, ROOMS, room_of, imported = (PICTURE[name] for name in ('CORE', 'ROOMS', 'room_of', 'imported'))
FILES = sorted(CORE.rglob('*.py'))
MOST_LINES = 400
each_file = pytest.mark.parametrize('path', FILES, ids=lambda path: str(path.relative_to(CORE)))


def test_every_folder_of_the_core_is_a_room():
    assert {path.name for path in CORE.iterdir() if path.is_dir() and path.name != '__pycache__'} == set(ROOMS)


@each_file
def test_imports_go_down_only(path):
    own = room_of(path.relative_to(CORE).parts)
    found = {room_of(names) for names in imported(path)} - {None}
    if own is not None:
        assert all(ROOMS.index(room) <= ROOMS.index(own) for room in found), found
    else:
        assert path.name == '__init__.py' or not found, found


def test_imports_are_found_whatever_their_form():
    """The picture and the test before this one rest on that."""
    assert ('metric', 'pullback', 'each_metric') in imported(CORE / 'pipeline' / 'measure.py')
    assert ('coding', 'entropy') in imported(CORE / 'representations' / 'lattice' / 'exponents.py')


@each_file
def test_no_file_is_long(path):
    assert len(path.read_text(encoding='utf-8').splitlines()) <= MOST_LINES


@pytest.mark.parametrize('room', ROOMS)
def test_each_room_says_what_lives_there_and_has_tests(room):
    text = (CORE / room / '__init__.py').read_text(encoding='utf-8')
    assert 'Imports' in ast.get_docstring(ast.parse(text)) and len(text.splitlines()) <= 20
    assert list((Path(__file__).parent / room).rglob('test_*.py'))


def test_the_picture_is_drawn(tmp_path):
    PICTURE['draw'](tmp_path / 'rooms.png')
    assert (tmp_path / 'rooms.png').read_bytes().startswith(b'\x89PNG')
