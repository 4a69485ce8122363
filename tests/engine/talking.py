"""Processes that talk, and some that fail: prints a JSON object with what each scenario gives in each process.

The package is loaded once; each process is a fork of this one. talking.py FOLDER PORT...
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

from mmriem.core.errors import RiemError
from mmriem.engine.processes import joined

SIZE, PATIENCE = 3, 3.0


def talk(workers):
    """Everything arrives, empty and large parts too."""
    first = [part.decode() for part in workers.exchange(str(workers.rank).encode() * workers.rank)]
    second = [len(part) for part in workers.gather(bytes(100_000 * workers.rank), 1)]
    third = [part.decode() for part in workers.exchange(b'end')]
    return first, second, third


def posted(workers):
    """Messages come in their order, large and empty ones too, and are not waited for by who sends them."""
    messages = [b'1', bytes(500_000), b'', b'22']
    for message in messages if workers.rank == 1 else ():
        for to in (0, 2):
            workers.post(message, to)
    workers.exchange(b'')
    return [] if workers.rank == 1 else [len(workers.receive(1)) for _ in messages]


def mute(workers):
    """One process is killed before it has posted all that another one waits for."""
    if workers.rank == 1:
        workers.post(b'one', 0)
        os.kill(os.getpid(), signal.SIGKILL)
    return [workers.receive(1).decode() for _ in range(2 if workers.rank == 0 else 0)]


def slow(workers):
    """Longer than the patience, but alive."""
    if workers.rank == 1:
        time.sleep(PATIENCE + 1)
    return len(workers.exchange(b''))


def killed(workers):
    """One process is killed between two exchanges."""
    workers.exchange(b'')
    if workers.rank == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return len(workers.exchange(b''))


def first_killed(workers):
    """The one that holds the store is killed."""
    workers.exchange(b'')
    if workers.rank == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return len(workers.exchange(b''))


def stopped(workers):
    """One process hangs."""
    if workers.rank == 1:
        os.kill(os.getpid(), signal.SIGSTOP)
    return len(workers.gather(b'', 0))


def failed(workers):
    """One process has an error."""
    if workers.rank == 1:
        raise RiemError('the disk is full')
    return len(workers.exchange(b''))


def terminated(workers):
    """A launcher ends the others when one has failed."""
    if workers.rank == 1:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)
    return len(workers.exchange(b''))


def process(folder: Path, rank: int, port: str, scenario) -> None:
    """One process of a scenario, in a fork."""
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(SIZE), MASTER_ADDR='127.0.0.1', MASTER_PORT=port)
    try:
        with joined('pytorch', PATIENCE) as workers:
            result = scenario(workers)
    except RiemError as error:
        result = str(error)
    (folder / f'{scenario.__name__}{rank}').write_text(json.dumps(result))


def main() -> None:
    """Run all scenarios, one after the other."""
    folder, scenarios = Path(sys.argv[1]), [talk, posted, mute, slow, killed, first_killed, stopped, failed, terminated]
    for port, scenario in zip(sys.argv[2:], scenarios):
        children = []
        for rank in range(SIZE):
            children.append(os.fork())
            if not children[-1]:
                signal.alarm(90)  # ends this process in any case
                process(folder, rank, port, scenario)
                os._exit(0)
        for rank in (0, 2, 1):
            if scenario is stopped and rank == 1:
                os.kill(children[rank], signal.SIGKILL)
            os.waitpid(children[rank], 0)


if __name__ == '__main__':
    main()
