"""Compressions that are killed, run out of disk, find a damaged journal, or meet another one: what is left of them.

python tools/maintain/kill_runs.py --out docs/reliability_kills.md
python tools/maintain/kill_runs.py --only kills --count 200 --seed 7

Each run is tools/compress.py on a demo detector, in a fork of this process, which has loaded everything once. A run
ends at a file operation that is drawn by the seed (it is killed just before it), or by a signal at a random time; the
next one has --resume. Wanted: the same bytes as without interruption, the four outputs and nothing else in the folder;
or one line that begins with `error:`. Anything else is a finding, and makes the exit status 1. A full disk is a file
system in memory, which takes root.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import torch

import mmriem.engine.compression  # noqa: F401  loaded once, for all forks
from mmriem.core.atomic import write_whole

ROOT = Path(__file__).parents[2]
DEMO = ('configs/demo/{}.py', 'demo/{}.pth')
DETECTORS = {
    'GFL R18': ('gfl_r18_fpn_digits', '--bits', '2', '--tune', '2'),
    'Faster R-CNN Swin': ('faster-rcnn_swin_fpn_digits', '--bits', '1', '--tune', '2'),
}
OUTPUTS = {'o.riem', 'o.py', 'o.json', 'o.html'}
FIRST_OUTPUT = re.compile(r'\.o\.riem\.[0-9a-f]{16}\.riem-tmp')
OPERATIONS = frozenset({'open', 'os.rename', 'os.remove', 'os.mkdir', 'os.rmdir', 'os.truncate'})
Operation = tuple[int, int]
"""Number of a file operation: one before the first output is written, or one from then on; 0 for none."""
LAST = (24, 3)
"""Of the file operations from the first output on: so many first and last ones are where every second kill is."""
CHAIN = 5
"""Kills of one compression before it may end."""


@dataclass
class End:
    """How a run ended: exit status (negative: the signal) and what it told."""

    status: int
    told: str

    @property
    def is_clean(self) -> bool:
        """Whether it ended well, or with one line that says why not."""
        errors = [line for line in self.told.splitlines() if line.startswith(('error: ', 'interrupted: '))]
        return 'Traceback' not in self.told and (self.status == 0 or (self.status == 1 and len(errors) == 1))


@dataclass
class Tally:
    """What was tried, and what was found to be wrong."""

    counts: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    findings: list[str] = field(default_factory=list)

    def add(self, detector: str, what: str, result: str, wrong: str = '') -> None:
        """Count one; `wrong` says what is not as it should be."""
        self.counts[detector, what, result] += 1
        if wrong:
            self.findings.append(f'{detector}, {what}: {wrong}')
        print(
            f'{time.strftime("%H:%M:%S")} {detector}: {what}: {result}{" WRONG: " if wrong else ""}{wrong}', flush=True
        )

    def table(self) -> str:
        """In Markdown."""
        rows = [f'| {" | ".join(key)} | {count} |' for key, count in sorted(self.counts.items())]
        return '\n'.join(['| detector | what | result | times |', '|---|---|---|---|', *rows, ''])


@dataclass(frozen=True)
class Detector:
    """A demo detector, and its compression without interruption."""

    name: str
    arguments: tuple[str, ...]
    expected: bytes = b''
    operations: Operation = (0, 0)

    @classmethod
    def of(cls, name: str, folder: Path) -> Detector:
        """Compress it once."""
        stem, *options = DETECTORS[name]
        config, checkpoint = (str(ROOT / path.format(stem)) for path in DEMO)
        draw_images(folder / 'images')
        plain = cls(name, (config, checkpoint, '--images', str(folder / 'images'), *options))
        count = folder / 'count'
        end = plain.run(folder / 'whole', count_into=count)
        if end.status:
            sys.exit(f'error: {name}: {end.told}')
        return cls(
            name,
            plain.arguments,
            (folder / 'whole' / 'o.riem').read_bytes(),
            tuple(map(int, count.read_text().split())),
        )

    def run(self, folder: Path, *flags: str, kill_at: Operation = (0, 0), count_into: Path | None = None) -> End:
        """One run into a folder; see :meth:`start`."""
        return ended(self.start(folder, *flags, kill_at=kill_at, count_into=count_into), folder)

    def start(self, folder: Path, *flags: str, kill_at: Operation = (0, 0), count_into: Path | None = None) -> int:
        """Fork a run; returns its process id.

        Args:
            folder: where it works.
            kill_at: it is killed before its file operation of that number, before the outputs or from then on.
            count_into: file for the number of these operations.
        """
        folder.mkdir(exist_ok=True)
        child = os.fork()
        if child:
            return child
        try:
            signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell has background jobs ignore it
            os.chdir(folder)
            log = os.open(f'{folder}.log', os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(log, 1)
            os.dup2(log, 2)
            watch_operations(folder, kill_at, count_into)
            sys.argv = ['compress.py', *self.arguments, '--out', 'o.riem', '--threads', '1', '--no-progress', *flags]
            runpy.run_path(str(ROOT / 'tools' / 'compress.py'), run_name='__main__')
            status = 0
        except SystemExit as error:
            status = 0 if error.code in (None, 0) else 1
            print(error.code if isinstance(error.code, str) else '', file=sys.stderr, flush=True)
        except BaseException:
            import traceback

            traceback.print_exc()
            status = 2
        sys.stdout.flush()
        os._exit(status)

    def wrong(self, folder: Path) -> str:
        """What is not as it should be in the folder of a run that ended well; empty if all is."""
        names = {path.name for path in folder.iterdir()}
        if names != OUTPUTS:
            return f'left over or lost: {", ".join(sorted(names ^ OUTPUTS))}'
        return '' if (folder / 'o.riem').read_bytes() == self.expected else 'other bytes'


def draw_images(folder: Path) -> None:
    """Two images, so that runs are short: no search for the style of procedural ones."""
    folder.mkdir()
    for number in range(2):
        image = np.random.default_rng(number).integers(0, 256, (12, 16, 3), np.uint8)
        cv2.imwrite(str(folder / f'{number}.png'), cv2.resize(image, (320, 240), interpolation=cv2.INTER_CUBIC))


def watch_operations(folder: Path, kill_at: Operation, count_into: Path | None) -> None:
    """Count the file operations of this process in the folder, and end it before the one of that number."""
    counts, here, part = [0, 0], os.fspath(folder), 0

    def see(event: str, arguments: tuple) -> None:
        nonlocal part
        if event not in OPERATIONS or not arguments or not isinstance(arguments[0], (str, os.PathLike)):
            return
        if not os.path.abspath(arguments[0]).startswith(here) or here not in os.getcwd():
            return
        if FIRST_OUTPUT.fullmatch(os.path.basename(os.fspath(arguments[0]))):
            part = 1
        counts[part] += 1
        if counts[part] == kill_at[part]:
            os.kill(os.getpid(), signal.SIGKILL)
        if count_into is not None:
            file = os.open(str(count_into), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.write(file, f'{counts[0]} {counts[1]}'.encode())
            os.close(file)

    sys.addaudithook(see)


def ended(child: int, folder: Path) -> End:
    """Wait for a run."""
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return End(status, Path(f'{folder}.log').read_text(errors='replace'))


def kills(detector: Detector, folder: Path, count: int, draw: random.Random, tally: Tally) -> None:
    """Chains of kills, each chain of one compression, which then goes on to its end."""
    done = chain = 0
    while done < count:
        where, flags = folder / f'chain{chain}', ()
        chain += 1
        for _ in range(min(CHAIN, count - done)):
            what, end = killed_once(detector, where, flags, draw, in_the_last_moments=done % 2 == 1)
            flags = ('--resume',)
            wrong = '' if end.status < 0 or end.is_clean else end.told[-500:]
            riem = where / 'o.riem'
            if riem.exists() and riem.read_bytes() != detector.expected:
                wrong = 'a file of other bytes'
            is_ended = end.status != 0
            tally.add(detector.name, what, 'ended there' if is_ended else 'was done before, not counted', wrong)
            if not is_ended:
                break
            done += 1
        finish(detector, where, 'killed, then --resume', tally)
        again = detector.run(where, '--resume')
        wrong = '' if again.status == 0 and 'nothing was left to do' in again.told else again.told[-500:]
        tally.add(detector.name, '--resume once more', 'says that all is done', wrong or detector.wrong(where))


def killed_once(
    detector: Detector, folder: Path, flags: Sequence[str], draw: random.Random, in_the_last_moments: bool
) -> tuple[str, End]:
    """A run that is killed before a file operation, or by a signal at a random time."""
    if in_the_last_moments:
        last = detector.operations[1]
        number = draw.choice([*range(1, LAST[0] + 1), *range(last - LAST[1] + 1, last + 1)])
        return 'killed in the last moments', detector.run(folder, *flags, kill_at=(0, number))
    if draw.random() < 0.6:
        number = draw.randrange(1, detector.operations[0])
        return 'killed at a file operation', detector.run(folder, *flags, kill_at=(number, 0))
    sent = draw.choice([signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
    child = detector.start(folder, *flags)
    wait_for(lambda: (folder / 'o.riem.journal').exists() or is_over(child))
    time.sleep(draw.uniform(0, 5))
    if not is_over(child):
        os.kill(child, sent)
    return f'{sent.name} at a random time', ended(child, folder)


def is_over(child: int) -> bool:
    """Whether a fork has ended; it is still to be waited for."""
    return os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def wait_for(is_so: Callable[[], bool], seconds: float = 600.0) -> None:
    """Wait until it is so, or the time is over."""
    latest = time.monotonic() + seconds
    while not is_so() and time.monotonic() < latest:
        time.sleep(0.01)


def finish(detector: Detector, folder: Path, what: str, tally: Tally, *flags: str) -> None:
    """Go on to the end, and compare."""
    end = detector.run(folder, *(flags or ('--resume',)))
    wrong = detector.wrong(folder) if end.status == 0 else end.told[-500:]
    tally.add(detector.name, what, 'same bytes, nothing left over', wrong)


def full_disks(detector: Detector, folder: Path, count: int, draw: random.Random, tally: Tally) -> None:
    """Disks that fill up at some moment of a compression, which goes on when there is room."""
    if os.geteuid() != 0:
        tally.add(detector.name, 'full disk', 'not tried: takes root')
        return
    needed = sum(path.stat().st_size for path in unfinished(detector, folder / 'needs', 1.0).rglob('*.piece'))
    for number in range(count):
        room = int(needed * draw.uniform(0.0, 1.1)) if number else 4096
        with small_disk(folder / f'full{number}', room) as (disk, enlarge):
            end = detector.run(disk / 'here')
            wrong = '' if end.is_clean and not {path.name for path in disk.glob('here/.*')} else end.told[-500:]
            tally.add(detector.name, 'full disk', 'one clear error' if end.status else 'was large enough', wrong)
            enlarge()
            finish(detector, disk / 'here', 'full disk, then room and --resume', tally)


@contextmanager
def small_disk(folder: Path, room: int) -> Iterator[tuple[Path, Callable[[], None]]]:
    """A file system in memory of so many bytes, and what makes it larger."""
    folder.mkdir()
    subprocess.run(['mount', '-t', 'tmpfs', '-o', f'size={room}', 'tmpfs', folder], check=True)
    try:
        yield folder, lambda: subprocess.run(['mount', '-o', 'remount,size=2G', folder], check=True)
    finally:
        subprocess.run(['umount', folder], check=True)


def unfinished(detector: Detector, folder: Path, share: float) -> Path:
    """The folder of a run that was killed after that share of its journal, or after all of it."""
    detector.run(folder, kill_at=(0, 5) if share == 1 else (int(share * detector.operations[0]), 0))
    return folder


def damages(detector: Detector, folder: Path, count: int, draw: random.Random, tally: Tally) -> None:
    """Journals of runs that were killed early and late, each damaged in one way."""
    bases = [unfinished(detector, folder / f'base{share}', share) for share in (0.5, 0.9, 1.0)]
    for number in range(count):
        where, (what, damage) = folder / f'damage{number}', list(DAMAGES.items())[number % len(DAMAGES)]
        shutil.copytree(draw.choice(bases), where)
        damage(where / 'o.riem.journal', draw)
        end = detector.run(where, '--resume')
        if end.status == 0:
            tally.add(detector.name, what, '--resume: same bytes, nothing left over', detector.wrong(where))
        else:
            tally.add(detector.name, what, '--resume: one clear error', '' if end.is_clean else end.told[-500:])
            finish(detector, where, f'{what}, then --force', tally, '--force')


def a_piece(journal: Path, draw: random.Random) -> Path:
    return draw.choice(sorted(journal.glob('*.piece')))


def a_metric(journal: Path) -> Path:
    return max(journal.glob('*.piece'), key=lambda path: path.stat().st_size)


def flip_a_bit(path: Path, draw: random.Random) -> None:
    data = bytearray(path.read_bytes())
    data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    path.write_bytes(data)


def swap(first: Path, second: Path) -> None:
    one, two = first.read_bytes(), second.read_bytes()
    first.write_bytes(two)
    second.write_bytes(one)


def cut(path: Path, draw: random.Random) -> None:
    os.truncate(path, draw.randrange(path.stat().st_size))


def to_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGES: dict[str, Callable[[Path, random.Random], None]] = {
    'a bit of a piece': lambda journal, draw: flip_a_bit(a_piece(journal, draw), draw),
    'a bit of a metric': lambda journal, draw: flip_a_bit(a_metric(journal), draw),
    'a piece lost': lambda journal, draw: a_piece(journal, draw).unlink(),
    'a metric lost': lambda journal, draw: a_metric(journal).unlink(),
    'a piece cut off': lambda journal, draw: cut(a_piece(journal, draw), draw),
    'two pieces swapped': lambda journal, draw: swap(*draw.sample(sorted(journal.glob('*.piece')), 2)),
    'half of the pieces lost': lambda journal, draw: [
        path.unlink() for path in sorted(journal.glob('*.piece')) if draw.random() < 0.5
    ],
    'a bit of every piece': lambda journal, draw: [flip_a_bit(path, draw) for path in sorted(journal.glob('*.piece'))],
    'a folder in the place of a piece': lambda journal, draw: to_folder(a_piece(journal, draw)),
    'settings: a list': lambda journal, draw: (journal / 'settings.json').write_text('[1]'),
    'settings: a bit': lambda journal, draw: flip_a_bit(journal / 'settings.json', draw),
    'settings: lost': lambda journal, draw: (journal / 'settings.json').unlink(),
    'settings: cut off': lambda journal, draw: cut(journal / 'settings.json', draw),
}


def two_at_once(detector: Detector, folder: Path, count: int, draw: random.Random, tally: Tally) -> None:
    """A second run beside a first one, which goes on undisturbed; then one beside a run that was killed."""
    where = folder / 'two'
    first = detector.start(where)
    wait_for(lambda: (where / 'o.riem.lock').exists() or is_over(first))
    for number in range(count):
        time.sleep(draw.uniform(0, 1))
        flags = ((), ('--resume',), ('--force',))[number % 3]
        second = folder / f'second{number}'
        second.symlink_to(where)
        end = detector.run(second, *flags)
        is_refused = end.status == 1 and end.is_clean and f'process {first} on ' in end.told
        if is_over(first):
            tally.add(detector.name, 'a second run', 'the first one was over already')
            break
        tally.add(
            detector.name, f'a second run {" ".join(flags)}', 'refused by name', '' if is_refused else end.told[-500:]
        )
    end = ended(first, where)
    tally.add(
        detector.name, 'the first of two', 'same bytes', detector.wrong(where) if not end.status else end.told[-500:]
    )


CAMPAIGNS = {'kills': kills, 'full': full_disks, 'damage': damages, 'two': two_at_once}
SHARES = {'kills': 1.0, 'full': 0.25, 'damage': 0.5, 'two': 0.2}
"""Of the count."""


def main() -> int:
    """Run the campaigns and tell what was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--only', nargs='+', choices=CAMPAIGNS, default=list(CAMPAIGNS))
    parser.add_argument('--detectors', nargs='+', choices=DETECTORS, default=list(DETECTORS))
    parser.add_argument('--count', type=int, default=30, help='kills of each detector; the others in proportion')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--out', help='file for the table in Markdown')
    args = parser.parse_args()
    torch.set_num_threads(1)
    tally = Tally()
    for name in args.detectors:
        with tempfile.TemporaryDirectory(prefix='kill_runs.') as scratch:
            detector = Detector.of(name, Path(scratch).resolve())
            for campaign in args.only:
                folder = Path(scratch).resolve() / campaign
                folder.mkdir()
                draw = random.Random(f'{args.seed} {name} {campaign}')
                CAMPAIGNS[campaign](detector, folder, max(1, round(SHARES[campaign] * args.count)), draw, tally)
    print(tally.table())
    print(*(tally.findings or ['no findings']), sep='\n')
    if args.out:
        write_whole(args.out, f'{tally.table()}\n{len(tally.findings)} findings; seed {args.seed}.\n')
    return 1 if tally.findings else 0


if __name__ == '__main__':
    sys.exit(main())
