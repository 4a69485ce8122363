"""Files are whole or absent; what killed processes leave is removed, and nothing else."""

import os
import re
import signal
import threading

import pytest
import torch

from mmriem.core import atomic
from mmriem.core.atomic import remove_leftovers, scratch_folder, temporary_path, whole_file, write_whole
from mmriem.core.errors import Interrupted, RiemError

WRITE_LIMITED = """
import resource, signal, sys
import torch
from mmriem.core.atomic import whole_file, write_whole
from mmriem.core.errors import Interrupted

def save_tensors(path):
    with whole_file(path) as stream:
        torch.save({'x': torch.zeros(99999)}, stream)

write = {'bytes': lambda path: write_whole(path, bytes(9999)), 'tensors': save_tensors}[sys.argv[1]]
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))  # files of more than 4 kB fail as on a disk that is full
try:
    write(sys.argv[2])
except Interrupted as error:
    print(error)
"""
WRITE_HALF = """
import sys, time
from mmriem.core.atomic import whole_file
with whole_file(sys.argv[1]) as stream:
    stream.write(b'half')
    stream.flush()
    print('writing', flush=True)
    time.sleep(600)
"""
DIE_IN_SCRATCH = """
import os, signal, sys
from mmriem.core.atomic import scratch_folder
with scratch_folder(sys.argv[1]) as scratch:
    (scratch / 'new').mkdir()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_bytes_and_texts_take_the_place_of_the_old_file(tmp_path):
    path = tmp_path / 'a'
    for content, expected in ((b'one', b'one'), ('zwei \u00e4', 'zwei \u00e4'.encode()), (b'', b'')):
        write_whole(path, content)
        assert path.read_bytes() == expected and os.listdir(tmp_path) == ['a']


def test_until_the_end_the_old_file_is_there(tmp_path):
    (tmp_path / 'a').write_bytes(b'old')
    with whole_file(tmp_path / 'a') as stream:
        stream.write(b'new')
        stream.flush()
        assert (tmp_path / 'a').read_bytes() == b'old' and os.path.dirname(stream.name) == str(tmp_path)
    assert (tmp_path / 'a').read_bytes() == b'new'


@pytest.mark.parametrize('error', [KeyboardInterrupt, ValueError, RiemError('mine')])
def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path, error):
    (tmp_path / 'a').write_bytes(b'old')
    with pytest.raises(error if isinstance(error, type) else type(error)), whole_file(tmp_path / 'a') as stream:
        stream.write(b'new')
        raise error
    assert (tmp_path / 'a').read_bytes() == b'old' and os.listdir(tmp_path) == ['a']


def test_a_check_sees_all_bytes_and_can_refuse_them(tmp_path):
    def check(path):
        assert path.read_bytes() == b'new' * 9999
        raise RiemError('refused')

    with pytest.raises(RiemError, match=r'^refused$'), whole_file(tmp_path / 'a', check=check) as stream:
        stream.write(b'new' * 9999)
    assert not os.listdir(tmp_path)


def test_a_place_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / 'folder').mkdir()
    reasons = {tmp_path / 'missing' / 'a': 'No such file or directory', tmp_path / 'folder': 'Is a directory'}
    for path, reason in reasons.items():
        sentence = f'{path}: the file cannot be written ({reason}); choose another place'
        with pytest.raises(Interrupted, match=f'^{re.escape(sentence)}$'):
            write_whole(path, b'x')
    assert os.listdir(tmp_path) == ['folder']


@pytest.mark.parametrize('what', ['bytes', 'tensors'])
def test_a_full_disk_is_one_sentence_and_leaves_the_old_file(tmp_path, started, what):
    (tmp_path / 'a').write_bytes(b'old')
    error = started(WRITE_LIMITED, what, tmp_path / 'a').communicate()[0].strip()
    assert error == f'{tmp_path / "a"}: the file cannot be written (File too large); make room, or choose another place'
    assert (tmp_path / 'a').read_bytes() == b'old' and os.listdir(tmp_path) == ['a']


def test_what_a_killed_process_was_writing_is_removed_and_what_a_living_one_writes_is_not(tmp_path, started):
    process = started(WRITE_HALF, tmp_path / 'net.riem')
    assert process.stdout.readline() == 'writing\n'
    (name,) = os.listdir(tmp_path)
    remove_leftovers(tmp_path)
    assert os.listdir(tmp_path) == [name]
    process.kill()
    process.wait()
    assert os.listdir(tmp_path) == [name]
    write_whole(tmp_path / 'other', b'x')
    assert os.listdir(tmp_path) == ['other']


def test_nothing_else_is_removed(tmp_path):
    names = ['.a.tmp', '.a.riem-tmp', '.a.0123456789abcdef.tmp', 'a.0123456789abcdef.riem-tmp', '.riem-tmp', 'a.riem']
    names += ['.a.0123456789abcdeg.riem-tmp', '.a.0123456789abcdef.riem-tmp.py', '.a.riem.0123456789ABCDEF.riem-tmp']
    for name in names:
        (tmp_path / name).write_text('mine')
    (tmp_path / 'outside').mkdir()
    (tmp_path / 'outside' / 'precious').write_text('mine')
    temporary_path(tmp_path / 'link').symlink_to(tmp_path / 'outside' / 'precious')
    folder = temporary_path(tmp_path / 'net.riem.journal')
    folder.mkdir()
    (folder / 'piece').write_bytes(b'x')
    remove_leftovers(tmp_path)
    assert not folder.exists() and (tmp_path / 'outside' / 'precious').read_text() == 'mine'
    assert set(names) <= set(os.listdir(tmp_path))
    remove_leftovers(tmp_path / 'missing')


def test_names_as_long_as_a_disk_takes(tmp_path):
    path = tmp_path / ('\u00e9' * 120)
    with whole_file(path) as stream:
        stream.write(b'x')
        assert len(os.listdir(tmp_path)) == 1
    assert path.read_bytes() == b'x' and os.listdir(tmp_path) == [path.name]


def test_threads_that_write_and_clean_at_a_time(tmp_path):
    errors = []

    def work(number):
        try:
            for count in range(30):
                write_whole(tmp_path / f'{number % 2}', bytes([number, count]))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors and sorted(os.listdir(tmp_path)) == ['0', '1']


def test_without_locks_of_files_leftovers_stay(tmp_path, monkeypatch):
    monkeypatch.setattr(atomic, 'fcntl', None)
    left = temporary_path(tmp_path / 'a')
    left.write_bytes(b'perhaps in use')
    write_whole(tmp_path / 'a', torch.zeros(1).numpy().tobytes())
    assert left.exists() and (tmp_path / 'a').read_bytes() == bytes(4)


def test_a_scratch_folder_is_gone_at_the_end_and_is_left_alone_while_it_is_in_use(tmp_path):
    with scratch_folder(tmp_path / 'set') as scratch:
        (scratch / 'new').mkdir()
        (scratch / 'new' / 'a').write_text('x')
        remove_leftovers(tmp_path)
        os.rename(scratch / 'new', tmp_path / 'set')
    assert os.listdir(tmp_path) == ['set'] and (tmp_path / 'set' / 'a').read_text() == 'x'


def test_the_scratch_folder_of_a_killed_process_is_removed(tmp_path, started):
    assert started(DIE_IN_SCRATCH, tmp_path / 'set').wait() == -signal.SIGKILL
    assert len(os.listdir(tmp_path)) == 1
    write_whole(tmp_path / 'a', b'x')
    assert os.listdir(tmp_path) == ['a']
