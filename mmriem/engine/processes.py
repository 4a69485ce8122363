"""Several processes of one compression, on one machine or many, through torch.distributed with gloo.

They meet before each exchange of results; small messages from one to another go through the store that they share. A
process that has not been heard of for a while is taken as lost, and the others stop with an error that says so, instead
of waiting for ever: each one counts up a heartbeat in the store, beside its work, however long that takes.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from mmriem.core.errors import Interrupted, RiemError
from mmriem.core.execution.workers import Workers

__all__ = ['LAUNCHERS', 'Processes', 'joined']

LAUNCHERS = ('none', 'pytorch', 'slurm', 'mpi')
BEAT = 1.0
"""Seconds between two heartbeats of a process."""
PATIENCE = 30.0
"""Seconds without a heartbeat after which a process is lost."""
LONGEST_PAUSE = 0.01
"""Seconds between two looks for what another process does, at most."""
TRANSFER = 300.0
"""Seconds that processes may take to find each other, and that one transfer may take."""
_STARTERS = {
    'pytorch': 'torchrun or tools/dist_compress.sh',
    'slurm': 'srun or tools/slurm_compress.sh',
    'mpi': 'mpirun',
}
_REMEDY = 'what is finished is kept: start again with --resume'
_PORT = '29500'


class Processes(Workers):
    """The processes that a launcher has started.

    Args:
        store: that all of them share.
        rank: of this one.
        size: how many there are.
        patience: seconds without a heartbeat after which a process is lost.
    """

    def __init__(self, store: dist.Store, rank: int, size: int, patience: float = PATIENCE) -> None:
        self.rank, self.size = rank, size
        self._store, self._patience = store, patience
        self._meetings = 0
        self._messages: Counter[tuple[int, int]] = Counter()
        self._heard: dict[int, tuple[bytes, float]] = {}
        self._stop = threading.Event()
        self._heart = threading.Thread(target=self._beat, daemon=True)
        self._heart.start()

    def exchange(self, data: bytes) -> list[bytes]:
        with self._talking():
            sizes = self._sizes(data)
            parts = []
            for rank in range(self.size):
                tensor = _tensor(data) if rank == self.rank else torch.empty(sizes[rank], dtype=torch.uint8)
                if sizes[rank]:
                    dist.broadcast(tensor, rank)
                parts.append(data if rank == self.rank else tensor.numpy().tobytes())
        return parts

    def gather(self, data: bytes, to: int) -> list[bytes]:
        with self._talking():
            sizes = self._sizes(data)
            if self.rank != to:
                if data:
                    dist.send(_tensor(data), to)
                return []
            parts = []
            for rank in range(self.size):
                if rank == to:
                    parts.append(data)
                    continue
                tensor = torch.empty(sizes[rank], dtype=torch.uint8)
                if sizes[rank]:
                    dist.recv(tensor, rank)
                parts.append(tensor.numpy().tobytes())
        return parts

    def post(self, data: bytes, to: int) -> None:
        with self._guarded():
            self._store.set(self._next_message(self.rank, to), data)  # type: ignore[arg-type]  # bytes it takes, too

    def receive(self, sender: int) -> bytes:
        with self._guarded():
            key = self._next_message(sender, self.rank)
            self._wait_for(key, sender)
            data = self._store.get(key)
            self._store.delete_key(key)
        return data

    def fail(self, reason: str) -> None:
        """Tell the others that this process ends, and why."""
        with suppress(RuntimeError):  # the store may be gone, and the others with it
            if not self._store.check(['failed']):  # the first reason is the one to know
                self._store.set('failed', f'process {self.rank} of {self.size} stopped ({reason})')

    def leave(self) -> None:
        """The last call. The first process waits a little for the others, since it may have the store."""
        self._stop.set()
        with suppress(RuntimeError):
            self._store.set(f'left {self.rank}', '')
            deadline = time.monotonic() + min(5.0, self._patience)
            others = [f'left {rank}' for rank in range(self.size)]
            while self.rank == 0 and time.monotonic() < deadline and not self._store.check(others):
                time.sleep(0.05)
        self._heart.join(BEAT)

    def _sizes(self, data: bytes) -> list[int]:
        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
        dist.all_gather(sizes, torch.tensor([len(data)]))
        return [int(size) for size in sizes]

    @contextmanager
    def _talking(self) -> Iterator[None]:
        """Wait for all the others to come here.

        Raises:
            Interrupted: one of them does not.
        """
        with self._guarded():
            self._meet()
            yield

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        """Errors of torch.distributed as what they mean: that another process is gone."""
        try:
            yield
        except RiemError:
            raise
        except RuntimeError as error:
            reason = str(error).strip().partition('\n')[0]
            raise Interrupted(
                f'process {self.rank} of {self.size}: another one is gone ({reason}); {_REMEDY}'
            ) from error

    def _meet(self) -> None:
        meeting, self._meetings = self._meetings, self._meetings + 1
        self._store.set(f'here {meeting} {self.rank}', '')
        for rank in range(self.size):
            self._wait_for(f'here {meeting} {rank}', rank)

    def _next_message(self, sender: int, to: int) -> str:
        """Key of the next message from one process to the other."""
        number = self._messages[sender, to]
        self._messages[sender, to] += 1
        return f'message {sender} {to} {number}'

    def _wait_for(self, key: str, rank: int) -> None:
        """Wait until that process has set the key."""
        pause = 0.001
        while not self._store.check([key]):
            self._look_after(rank)
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    def _look_after(self, rank: int) -> None:
        if self._store.check(['failed']):
            raise Interrupted(f'{self._store.get("failed").decode()}; {_REMEDY}')
        key, now = f'beat {rank}', time.monotonic()
        beat = self._store.get(key) if self._store.check([key]) else b''
        before, since = self._heard.get(rank, (None, now))
        if beat != before:
            self._heard[rank] = beat, now
        elif now - since > self._patience:
            raise Interrupted(
                f'process {rank} of {self.size} is lost: expected a sign of life every {BEAT:.0f} s, found none for '
                f'{now - since:.0f} s; {_REMEDY}'
            )

    def _beat(self) -> None:
        count = 0
        while not self._stop.wait(BEAT):
            count += 1
            try:
                self._store.set(f'beat {self.rank}', str(count))
            except RuntimeError:
                return  # the store is gone, as the next meeting will tell


@contextmanager
def joined(launcher: str, patience: float = PATIENCE) -> Iterator[Workers]:
    """The processes that the launcher has started; with `none` this one alone.

    At the end they wait for each other. An error in one ends all.

    Args:
        launcher: one of `LAUNCHERS`.
        patience: seconds without a heartbeat after which a process is lost.

    Raises:
        RiemError: this process was not started by that launcher, or the others do not come.
    """
    if launcher == 'none':
        yield Workers()
        return
    for name, value in _environment(launcher).items():
        os.environ.setdefault(name, value)
    limit = timedelta(seconds=TRANSFER)
    try:
        store, rank, size = next(rendezvous('env://', timeout=limit))
        dist.init_process_group(
            'gloo', store=dist.PrefixStore('gloo', store), rank=rank, world_size=size, timeout=limit
        )
    except (RuntimeError, ValueError, OSError) as error:
        reason = str(error).strip().partition('\n')[0]
        raise RiemError(f'--launcher {launcher}: the processes do not find each other ({reason})') from error
    workers = Processes(dist.PrefixStore('mmriem', store), rank, size, patience)
    before = signal.signal(signal.SIGTERM, _end)
    try:
        yield workers
        workers.exchange(b'')
    except BaseException as error:
        workers.fail(str(error) or type(error).__name__)
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
        workers.leave()
        dist.destroy_process_group()


def _environment(launcher: str) -> dict[str, str]:
    """What torch.distributed wants to find in the environment, from what the launcher has put there.

    Raises:
        RiemError: it has not.
    """
    found = {
        'pytorch': lambda: {name: os.environ[name] for name in ('RANK', 'WORLD_SIZE', 'MASTER_ADDR', 'MASTER_PORT')},
        'slurm': _slurm,
        'mpi': _mpi,
    }[launcher]
    try:
        return found()
    except KeyError as error:
        raise RiemError(
            f'--launcher {launcher}: expected {error.args[0]} in the environment, found none; start the command by '
            f'{_STARTERS[launcher]}'
        ) from error


def _slurm() -> dict[str, str]:
    nodes = os.environ['SLURM_NODELIST']
    if 'MASTER_ADDR' not in os.environ:
        listed = subprocess.run(['scontrol', 'show', 'hostnames', nodes], capture_output=True, text=True, check=True)
        os.environ['MASTER_ADDR'] = listed.stdout.split()[0]
    return {
        'RANK': os.environ['SLURM_PROCID'],
        'WORLD_SIZE': os.environ['SLURM_NTASKS'],
        'LOCAL_RANK': os.environ['SLURM_LOCALID'],
        'MASTER_PORT': _PORT,
    }


def _mpi() -> dict[str, str]:
    size, here = (os.environ[f'OMPI_COMM_WORLD_{name}'] for name in ('SIZE', 'LOCAL_SIZE'))
    address = '127.0.0.1' if size == here else os.environ['MASTER_ADDR']
    return {
        'RANK': os.environ['OMPI_COMM_WORLD_RANK'],
        'WORLD_SIZE': size,
        'LOCAL_RANK': os.environ['OMPI_COMM_WORLD_LOCAL_RANK'],
        'LOCAL_WORLD_SIZE': here,
        'MASTER_ADDR': address,
        'MASTER_PORT': _PORT,
    }


def _end(number: int, frame: object) -> None:
    """Launchers send SIGTERM where another process has failed; what runs in threads now is not waited for."""
    print(
        f'error: ended by {signal.Signals(number).name}, as a launcher does when another process has failed; {_REMEDY}',
        file=sys.stderr,
        flush=True,
    )
    os._exit(1)


def _tensor(data: bytes) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)
