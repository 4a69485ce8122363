"""Hostile checkpoints, hundreds of them: none runs code, takes long or takes the memory, and each ends in one sentence.

    python tools/maintain/fuzz_checkpoints.py
    python tools/maintain/fuzz_checkpoints.py --only 217 --keep folder

The checkpoints of hostile_pickles.py are put to `read_checkpoint`, and every tenth to the command `mmriem compress`.
Findings are a file that a checkpoint made, a process or connection that was started, more than one line, other
exceptions than RiemError, more than 2 seconds of computing, more than 256 MiB of memory beside what the process has,
crashes and hangs; they make the exit status 1.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path

import torch
from hostile_pickles import Case, cases
from trials import FINDING, Result, Trial, run_trials

import mmriem.engine.compression  # noqa: F401  loaded once, for all forks
from mmriem.cli import call
from mmriem.core.errors import RiemError
from mmriem.engine.checkpoint import read_checkpoint

CONFIG = Path(__file__).parents[2] / 'configs' / 'demo' / 'gfl_r18_fpn_digits.py'
EVERY = 10
"""So many checkpoints are read for each that the command gets."""
ACTS = frozenset(
    [
        *('os.system', 'os.exec', 'os.posix_spawn', 'os.spawn', 'os.startfile', 'os.fork', 'os.forkpty', 'pty.spawn'),
        *('subprocess.Popen', 'shutil.rmtree', 'socket.connect', 'socket.bind', 'webbrowser.open'),
        *('pickle.find_class', 'code.__new__', 'function.__new__'),
    ]
)
"""Events of the interpreter that no checkpoint may cause."""
LONGEST = 1000
"""Characters of a message, beside the path."""


class Watch:
    """Whether the interpreter did any of `ACTS` while it was on."""

    def __init__(self) -> None:
        self.is_on, self.seen = False, ''
        sys.addaudithook(self._see)

    def _see(self, event: str, _: tuple) -> None:
        if self.is_on and event in ACTS:
            self.seen = event

    def __enter__(self) -> Watch:
        self.is_on, self.seen = True, ''
        return self

    def __exit__(self, *_: object) -> None:
        self.is_on = False


def judge(case: Case, number: int, folder: Path, watch: Watch) -> Result:
    """Read one checkpoint, in a folder of its own."""
    way, name, _ = case
    path = folder / f'{number}.pth'
    with watch:
        try:
            read_checkpoint(path)
            outcome, said = 'read', ''
        except RiemError as error:
            outcome, said = 'refused', str(error)
        except Exception:
            return Result(number, way, f'{FINDING}another exception', f'{name}: {traceback.format_exc()[-1500:]}')
    return judged(Result(number, way, outcome, said), name, path, watch)


def judge_command(case: Case, number: int, folder: Path) -> Result:
    """Compress one, with the command."""
    way, (_, name, _) = 'the command', case
    path = folder / f'{number}.pth'
    sys.argv = ['compress', str(CONFIG), str(path), '--out', str(folder / 'out'), '--no-progress']
    told = io.StringIO()
    try:
        with contextlib.redirect_stderr(told), contextlib.redirect_stdout(told):
            call('compress')
    except SystemExit as error:
        said = error.code if isinstance(error.code, str) else told.getvalue()
        return judged(Result(number, way, 'refused', said), name, path, None)
    except Exception:
        return Result(number, way, f'{FINDING}another exception', f'{name}: {traceback.format_exc()[-1500:]}')
    return Result(number, way, f'{FINDING}no error', f'{name}, of another network')


def judged(result: Result, name: str, path: Path, watch: Watch | None) -> Result:
    """The result, or what is wrong with it."""
    if (path.parent / 'MARKER').exists() or (watch is not None and watch.seen):
        return Result(result.number, result.way, f'{FINDING}ran code', f'{name}: {watch and watch.seen}')
    said = result.detail.replace(str(path), 'x.pth')
    if '\n' in said.strip() or len(said) > LONGEST or 'maximum recursion' in said:
        return Result(result.number, result.way, f'{FINDING}not one sentence', f'{name}: {said[:1500]}')
    return Result(result.number, result.way, result.outcome, f'{name}: {said}')


def main() -> int:
    """Try all, and print the table."""
    parser = argparse.ArgumentParser(description='Hostile checkpoints, hundreds of them')
    parser.add_argument('--processes', type=int, default=2)
    parser.add_argument('--only', type=int, nargs='+', help='numbers of the checkpoints')
    parser.add_argument('--keep', type=Path, help='folder that the checkpoints of --only are written to')
    parser.add_argument('--say', action='store_true', help='print every message')
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter('ignore')
    every = list(cases())
    commands = [number + len(every) for number in range(0, len(every), EVERY)]
    start, watch = time.perf_counter(), Watch()
    with tempfile.TemporaryDirectory(prefix='fuzz_checkpoints.') as scratch:

        def make(number: int) -> tuple[Case, Path]:
            case = every[number % len(every)]
            folder = (args.keep or Path(scratch)) / str(number)
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f'{number}.pth').write_bytes(case[2])
            os.chdir(folder)
            return case, folder.resolve()

        def judge_one(number: int, made: tuple[Case, Path]) -> Result:
            case, folder = made
            is_command = number >= len(every)
            result = judge_command(case, number, folder) if is_command else judge(case, number, folder, watch)
            if args.say:
                print(result.number, result.way, result.outcome, result.detail[:300], flush=True)
            return result

        numbers = args.only or [*range(len(every)), *commands]
        tally = run_trials(Trial(make, judge_one), numbers, args.processes)
    print(tally.table())
    print(f'{tally.total:,} readings of {len(every):,} checkpoints, {len(tally.findings)} findings')
    print(f'{time.perf_counter() - start:.0f} s', file=sys.stderr)
    return 1 if tally.findings else 0


if __name__ == '__main__':
    sys.exit(main())
