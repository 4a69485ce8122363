"""One process at a time; locks of processes that are gone are stale."""

import json
import os
import socket

import pytest

from mmriem.core import atomic
from mmriem.core.errors import Interrupted, RiemError
from mmriem.core.execution.lock import locked

HOLD = """
import sys, time
from mmriem.core.execution.lock import locked
with locked(sys.argv[1], 'net.riem'):
    print('held', flush=True)
    time.sleep(600)
"""


@pytest.fixture
def holder(started, tmp_path):
    process = started(HOLD, tmp_path / 'lock')
    assert process.stdout.readline() == 'held\n'
    return process


def refused(path, *words):
    with pytest.raises(RiemError) as found, locked(path, 'net.riem'):
        pass
    assert all(word in str(found.value) for word in words), found.value


def test_the_second_one_is_told_of_the_first_and_takes_over_when_that_is_killed(tmp_path, holder):
    path = tmp_path / 'lock'
    who = f'net.riem: expected no other run that writes it, found process {holder.pid} on {socket.gethostname()}'
    for _ in range(2):
        refused(path, who, 'wait until it ends')
        assert path.exists()
    holder.kill()
    holder.wait()
    assert path.exists()
    with locked(path, 'net.riem'):
        assert json.loads(path.read_text())['process'] == os.getpid()
    assert not path.exists()


def test_within_one_process_too(tmp_path):
    with locked(tmp_path / 'lock', 'net.riem'):
        refused(tmp_path / 'lock', f'process {os.getpid()}')
    with locked(tmp_path / 'lock', 'net.riem'):
        pass
    assert not os.listdir(tmp_path)


def test_an_error_ends_it(tmp_path):
    with pytest.raises(ValueError), locked(tmp_path / 'lock', 'net.riem'):
        raise ValueError
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize('content', [b'', b'\xff', b'[1]', b'{"process": "x"}', b'[' * 99999, b'{"process": -1}'])
def test_a_damaged_lock_that_nobody_holds_is_stale(tmp_path, content):
    path = tmp_path / 'lock'
    path.write_bytes(content)
    with locked(path, 'net.riem'):
        assert json.loads(path.read_text())['process'] == os.getpid()
    assert not path.exists()


def test_a_damaged_lock_that_somebody_holds_is_refused(tmp_path, holder):
    (tmp_path / 'lock').write_bytes(b'damaged')
    refused(tmp_path / 'lock', 'process unknown on an unknown host')


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(Interrupted, match='the lock cannot be written'), locked(tmp_path / 'missing' / 'lock', 'x'):
        pass


class TestWithoutLocksOfTheSystem:
    """The content decides."""

    @pytest.fixture(autouse=True)
    def without(self, monkeypatch):
        monkeypatch.setattr(atomic, 'fcntl', None)

    def test_of_a_living_process(self, tmp_path, holder):
        refused(tmp_path / 'lock', f'process {holder.pid}', f'remove {tmp_path / "lock"}')

    def test_of_a_process_that_is_gone(self, tmp_path, holder):
        holder.kill()
        holder.wait()
        with locked(tmp_path / 'lock', 'net.riem'):
            pass
        assert not os.listdir(tmp_path)

    def test_of_a_process_whose_number_is_used_again(self, tmp_path):
        content = {'process': os.getpid(), 'host': socket.gethostname(), 'started': '1'}
        (tmp_path / 'lock').write_text(json.dumps(content))
        with locked(tmp_path / 'lock', 'net.riem'):
            pass

    def test_of_another_machine(self, tmp_path):
        (tmp_path / 'lock').write_text(json.dumps({'process': 1, 'host': 'elsewhere', 'started': '1'}))
        refused(tmp_path / 'lock', 'process 1 on elsewhere')
