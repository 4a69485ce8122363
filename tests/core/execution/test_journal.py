"""Finished pieces on disk: whole or absent, of one compression only; killed and resumed."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmriem.core.atomic import temporary_path
from mmriem.core.errors import RiemError
from mmriem.core.execution.journal import Journal


@pytest.fixture
def journal(tmp_path):
    journal = Journal(tmp_path / 'net.riem.journal')
    journal.begin({'bits': 2.0, 'include': ('*',)})
    return journal


@settings(deadline=None, max_examples=40)
@given(pieces=st.dictionaries(st.text(), st.binary(), max_size=5))
def test_pieces_come_back(tmp_path_factory, pieces):
    journal = Journal(tmp_path_factory.mktemp('journals') / 'j')
    assert not journal.exists() and len(journal) == 0
    journal.begin({})
    for key, piece in pieces.items():
        assert journal.get(key) is None
        journal.put(key, piece)
    assert len(journal) == len(pieces) and all(journal.get(key) == piece for key, piece in pieces.items())


def test_a_later_piece_replaces_an_earlier_one(journal):
    journal.put('a', b'one')
    journal.put('a', b'two')
    assert journal.get('a') == b'two' and len(journal) == 1


def test_a_piece_that_is_there_is_not_written_again(journal):
    journal.put('a', b'one')
    (path,) = journal.folder.glob('*.piece')
    before = path.stat()
    journal.put('a', b'one')
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


@pytest.mark.parametrize('length', [0, 10, 31, 32, 40])
def test_a_piece_that_is_cut_off_is_absent(journal, length):
    journal.put('a', b'much longer than that')
    (path,) = journal.folder.glob('*.piece')
    path.write_bytes(path.read_bytes()[:length])
    assert journal.get('a') is None
    journal.put('a', b'again')
    assert journal.get('a') == b'again'


def test_a_piece_with_a_wrong_bit_is_absent(journal):
    journal.put('a', b'content')
    (path,) = journal.folder.glob('*.piece')
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert journal.get('a') is None


def test_the_same_compression_goes_on_and_another_one_is_refused(journal):
    journal.put('a', b'kept')
    again = Journal(journal.folder)
    again.begin({'include': ['*'], 'bits': 2.0})
    assert again.get('a') == b'kept' and again.exists()
    for other, words in (
        ({'bits': 3.0, 'include': ['*']}, r'bits: 2.0, here 3.0.*--force'),
        ({'bits': 2.0}, r'include: .* here None'),
        ({'bits': 2.0, 'include': ['*'], 'seed': 1}, 'seed: None, here 1'),
    ):
        with pytest.raises(RiemError, match=words):
            Journal(journal.folder).begin(other)
    assert journal.get('a') == b'kept'


@pytest.mark.parametrize('text', [None, '', '{"bits": 2', '\xff', '[1, 2]', '3', 'null', '"bits"', '[' * 100000])
def test_settings_that_are_gone_or_damaged_are_an_error(journal, text):
    journal.put('a', b'of unknown origin')
    path = journal.folder / 'settings.json'
    if text is None:
        path.unlink()
    else:
        path.write_bytes(text.encode('latin-1'))
    with pytest.raises(
        RiemError,
        match=r'settings.json: expected the settings of a journal, found .*; start over with --force, or remove',
    ):
        Journal(journal.folder).begin({'bits': 2.0})


def test_a_piece_under_the_name_of_another_one_is_absent(journal):
    journal.put('a', b'of a')
    (of_a,) = journal.folder.glob('*.piece')
    journal.put('b', b'of b')
    (of_b,) = set(journal.folder.glob('*.piece')) - {of_a}
    first, second = of_a.read_bytes(), of_b.read_bytes()
    of_a.write_bytes(second)
    of_b.write_bytes(first)
    assert journal.get('a') is None and journal.get('b') is None and journal.holds('a')


def test_a_piece_of_another_compression_is_absent(journal, tmp_path):
    journal.put('a', b'with two bits')
    other = Journal(tmp_path / 'other.riem.journal')
    other.begin({'bits': 3.0})
    other.put('a', b'with three')
    (mine,), (its,) = (set(folder.glob('*.piece')) for folder in (journal.folder, other.folder))
    mine.write_bytes(its.read_bytes())
    assert journal.get('a') is None and other.get('a') == b'with three'


def test_a_folder_in_the_place_of_a_piece_is_absent(journal):
    journal.put('a', b'x')
    (path,) = journal.folder.glob('*.piece')
    path.unlink()
    path.mkdir()
    assert journal.get('a') is None
    with pytest.raises(RiemError, match=r'cannot be written .*--resume'):
        journal.put('a', b'x')


def test_a_file_in_the_place_of_the_folder_is_one_sentence(tmp_path):
    (tmp_path / 'j').write_text('mine')
    with pytest.raises(RiemError, match='expected the folder of a journal, found a file'):
        Journal(tmp_path / 'j').begin({})


def test_what_killed_processes_were_writing_is_gone_when_it_goes_on(journal):
    journal.put('a', b'kept')
    torn = temporary_path(journal.folder / 'settings.json')
    torn.write_bytes(b'half')
    (journal.folder / '.mine.tmp').write_text('of somebody else')
    again = Journal(journal.folder)
    again.begin({'bits': 2.0, 'include': ['*']})
    assert again.get('a') == b'kept' and not torn.exists() and (journal.folder / '.mine.tmp').exists()


def test_removed_is_gone(journal):
    journal.put('a', b'x')
    journal.remove()
    assert not journal.exists() and not list(journal.folder.parent.iterdir())
    journal.remove()
    with pytest.raises(RiemError, match='cannot be written'):
        journal.put('a', b'x')


def test_a_folder_that_cannot_be_made(tmp_path):
    with pytest.raises(RiemError, match='cannot be written'):
        Journal(tmp_path / 'missing' / 'j').begin({})


def test_several_threads_write_at_a_time(journal):
    threads = [
        threading.Thread(target=lambda n=n: [journal.put(f'{n} {i}', bytes([n, i])) for i in range(10)])
        for n in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(journal.get(f'{n} {i}') == bytes([n, i]) for n in range(4) for i in range(10)) and len(journal) == 40
    assert not [path for path in os.listdir(journal.folder) if path.endswith('-tmp')]


def test_killed_at_twenty_random_moments_and_resumed(tmp_path):
    """The same bytes each time, and no finished piece is written again once all metrics are there."""
    folder = Path(__file__).parent
    environment = {**os.environ, 'PYTHONPATH': os.pathsep.join([str(folder), str(folder.parents[2])])}
    done = subprocess.run(
        [sys.executable, folder / 'killed.py', tmp_path, '20'],
        env={**environment, 'OMP_NUM_THREADS': '1'},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert len(found['kills']) == 20 and found['pieces'] > 20 and found['measured'] == 9
    for kill in found['kills']:
        assert kill['same'] and kill['all'] == found['pieces'], found
        assert kill['again'] == 0 or kill['kept'] < found['measured'], found
    assert len({kill['kept'] for kill in found['kills']}) > 5
