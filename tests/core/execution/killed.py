"""Compressions that are killed at random moments and go on: killed.py FOLDER COUNT.

Torch is loaded once; each compression is a fork of this process. Prints JSON: the pieces of a whole compression and of
its first stage, and for each kill how many were finished then, how many of them were written again, and whether the
file is the same.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch
from test_workers import NET, run

from mmriem.core.execution.journal import Journal
from mmriem.core.file import writing


def compress(folder: Path) -> None:
    """One compression into FOLDER, as a process of its own would do it."""
    journal = Journal(folder / 'journal')
    journal.begin({'network': 'small'})
    writing.write(folder / 'net.riem', run(bits=3.0, journal=journal).archive, force=True)


def start(folder: Path) -> int:
    """The process id of a fork that compresses."""
    child = os.fork()
    if child:
        return child
    try:
        compress(folder)
    except BaseException as error:
        print(repr(error), file=sys.stderr, flush=True)
        os._exit(1)
    os._exit(0)


def pieces(folder: Path) -> dict:
    """Inode and time of each finished piece."""
    found = {path: path.stat() for path in (folder / 'journal').glob('*.piece')}
    return {path.name: (stat.st_ino, stat.st_mtime_ns) for path, stat in found.items()}


def measured(folder: Path) -> int:
    """Pieces of the stage that measures, which begins anew unless it was finished."""
    keys = [f'{kind} {name}' for kind in ('metric', 'source') for name in NET.state_dict()]
    return sum(Journal(folder / 'journal').holds(key) for key in keys)


def main() -> None:
    """Kill, resume, compare."""
    torch.set_num_threads(1)
    root, count = Path(sys.argv[1]), int(sys.argv[2])
    (root / 'whole').mkdir()
    assert os.waitpid(start(root / 'whole'), 0)[1] == 0
    expected, every = (root / 'whole' / 'net.riem').read_bytes(), len(pieces(root / 'whole'))
    generator, results = random.Random(0), []
    for number in range(count):
        folder = root / str(number)
        folder.mkdir()
        child, wanted, latest = start(folder), generator.randrange(every), time.monotonic() + 60
        while len(pieces(folder)) < wanted and time.monotonic() < latest:
            time.sleep(0.001)
        time.sleep(generator.uniform(0, 0.05))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        before = pieces(folder)
        status = os.waitpid(start(folder), 0)[1]
        after = pieces(folder)
        again = [name for name, stat in before.items() if after.get(name) != stat]
        same = status == 0 and (folder / 'net.riem').read_bytes() == expected
        results.append({'kept': len(before), 'again': len(again), 'all': len(after), 'same': same})
    print(json.dumps({'pieces': every, 'measured': measured(root / 'whole'), 'kills': results}))


if __name__ == '__main__':
    main()
