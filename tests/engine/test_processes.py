"""Several processes: everything arrives, and whoever is lost is missed soon."""

import json
import os
import socket
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from mmriem.core.errors import RiemError
from mmriem.core.execution.workers import Workers
from mmriem.engine.processes import joined

SCENARIOS = ('talk', 'posted', 'mute', 'slow', 'killed', 'first_killed', 'stopped', 'failed', 'terminated')


def free_ports(count):
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(('127.0.0.1', 0))
        return [str(each.getsockname()[1]) for each in sockets]


@pytest.fixture(scope='module')
def results(tmp_path_factory):
    """What each scenario of `talking.py` gave, by process; those that left nothing have None."""
    folder = tmp_path_factory.mktemp('talk')
    script = Path(__file__).with_name('talking.py')
    done = subprocess.run(
        [sys.executable, script, folder, *free_ports(len(SCENARIOS))],
        env={**os.environ, 'PYTHONPATH': str(script.parents[2]), 'OMP_NUM_THREADS': '1'},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    found = {}
    for scenario in SCENARIOS:
        paths = [folder / f'{scenario}{rank}' for rank in range(3)]
        found[scenario] = [json.loads(path.read_text()) if path.exists() else None for path in paths]
    return {**found, 'stderr': done.stderr}


def test_everything_arrives(results):
    for rank, (first, second, third) in enumerate(results['talk']):
        assert first == ['', '1', '22'] and third == ['end'] * 3
        assert second == ([0, 100_000, 200_000] if rank == 1 else [])


def test_messages_arrive_in_their_order(results):
    assert results['posted'] == [[1, 500_000, 0, 2], [], [1, 500_000, 0, 2]]


def test_who_waits_for_a_message_of_a_killed_process_misses_it(results):
    found = results['mute']
    assert found[1] is None and 'process 1 of 3 is lost' in found[0] and '--resume' in found[0]


def test_who_takes_long_is_waited_for(results):
    assert results['slow'] == [3, 3, 3]


@pytest.mark.parametrize(('scenario', 'lost'), [('killed', 2), ('stopped', 1)])
def test_who_is_killed_or_hangs_is_missed(results, scenario, lost):
    for rank, message in enumerate(results[scenario]):
        if rank == lost:
            assert message is None
        else:
            assert f'process {lost} of 3' in message or 'another one is gone' in message or 'is lost' in message
            assert '--resume' in message


def test_the_first_one_may_be_the_one_that_is_killed(results):
    found = results['first_killed']
    assert found[0] is None and all('gone' in message and '--resume' in message for message in found[1:])


def test_an_error_of_one_is_told_by_all(results):
    found = results['failed']
    assert found[1] == 'the disk is full'
    for rank in (0, 2):
        assert found[rank].startswith('process 1 of 3 stopped (the disk is full)') or 'gone' in found[rank]


def test_who_is_ended_by_the_launcher_says_so(results):
    assert 'error: ended by SIGTERM' in results['stderr'] and '--resume' in results['stderr']
    assert results['terminated'][1] is None


def test_without_a_launcher_there_is_one():
    with joined('none') as workers:
        assert type(workers) is Workers


@pytest.mark.parametrize(('launcher', 'name'), [('pytorch', 'RANK'), ('slurm', 'SLURM_NODELIST'), ('mpi', 'OMPI')])
def test_a_launcher_that_did_not_start_it(launcher, name, monkeypatch):
    for known in ('RANK', 'SLURM_NODELIST', 'OMPI_COMM_WORLD_SIZE'):
        monkeypatch.delenv(known, raising=False)
    with (
        pytest.raises(RiemError, match=f'--launcher {launcher}: expected {name}.* in the environment'),
        joined(launcher),
    ):
        pass
