"""Run every command of every page of the docs, each page in a scratch folder, and write what came of it.

    python tools/maintain/run_documented.py --work-dir DIR [--pages choosing.md ...] [--data DIR] [--list]

What a page leaves to its reader (CONFIG, CHECKPOINT, ...) is the demo detector. A command is skipped for a reason that
`SKIPPED` or `MISSING` has, and any other one that fails makes the exit status 1. Rows of pages that are not run
again are kept (rows.json in the work dir); the table goes to docs/commands.md.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).parents[2]
NO_COMMANDS = ('commands.md', 'python.md')
"""Pages whose blocks are no commands: this table, and what the site makes from docstrings."""
BEGINNINGS = re.compile(
    r'(?:[A-Z_]+=\S+ )*(?:mmriem |python |bash |pip |make |docker |mim |mpirun |tools/\S+\.sh )', re.ASCII
)
"""How a command begins, with variables of the environment before it or none."""
NAMED = (
    (r'\[--shape H W\] \[--out report\.json\]', '--shape 256 256 --out report.json'),
    (r' \[CONFIG \.\.\.\]', ''),
    (r'--networks N \.\.\. --bits B \.\.\.', '--networks resnet20 --bits 2'),
    (r'MODULE\.NAME --values V \.\.\.', 'mmriem.core.budget.plan.DEFAULT --values 1'),
    (r'--bits B\b', '--bits 1'),
    (r'\bCHECKPOINT\.riem\b', 'ckpt.riem'),
    (r'\b(?:FILE|COMPRESSED)\.riem\b|\bCOMPRESSED\b', 'ckpt.riem'),
    (r'\bNAME\b', 'ckpt'),
    (r'\bCONFIG\b', 'cfg.py'),
    (r'\b(?:CHECKPOINT|ORIGINAL|CKPT)\b', 'ckpt.pth'),
)
"""What stands for a reader's own files, and the demo detector in its place."""
SHORTER = (
    (r'compress(\.py|\.sh)? .*', r'\g<0> --force'),  # pages name alternatives
    (r'compress .*(--ladder|--bits \d+ \d|--size).*', r'\g<0> --image-count 4'),
    (r'(?<=convert-back )|(?<=export\.py )|(?<=mmriem export )', '--force '),
    (r'fuzz_riem\.py --count 100000 --seed 0 --processes 2', 'fuzz_riem.py --count 200 --seed 0 --processes 1'),
    (r'sanitise\.py --count 400', 'sanitise.py --count 20'),
    (r'(dist_compress\.sh \S+ \S+) 4', r'\1 2'),
    (r'(dist_test\.sh \S+ \S+) 8', r'\1 2'),
    (r'--published \d+', '--published 200'),
    (r'paper_protocol\.py cfg.*', r'\g<0> --seeds 1 --keep 1 --effort 0.05 --images 20'),
)
"""Changes to a command before it is run: outputs that are there are replaced, and hours become minutes."""
SKIPPED = (
    (r'\bpip (install|wheel)|^make setup', 'changes the environment; set-up does the like'),
    (r'> ~/', 'writes into the home folder'),
    (r'^make (demo|test)\b', 'runs by itself: make demo, make test'),
    (r'^docker ', 'no Docker engine'),
    (r'slurm', 'no Slurm'),
    (r'benchmark\.py|finetune_table\.py|constants\.py|compare\.py', 'hours: its page has the last run'),
    (r'kill_runs\.py|fuzz_checkpoints\.py|fuzz_decoder\.py', 'a long campaign: its page has the last run'),
    (r'random\.pth|dino\.pth|--held', 'a large network with random weights: its page has the last run'),
    (r'paper_protocol\.py configs', 'hours: its page has the last run'),
    (r'mask', 'needs weights that mmdet publishes'),
    (r'check_coco\.py', 'needs COCO'),
    (r'fcos', 'needs weights that mmdet publishes'),
)
"""Commands that are not run, and why."""
MISSING = (
    (r'^mpirun ', lambda: shutil.which('mpirun'), 'no MPI'),
    (r'^mim ', lambda: shutil.which('mim'), 'OpenMIM is not installed'),
    (r'\.onnx', lambda: find_spec('onnx') and find_spec('onnxscript'), 'onnx and onnxscript are not installed'),
    (r'sanitise\.py', lambda: shutil.which('gcc'), 'no gcc'),
)
"""What a command needs that a machine may lack."""
NEEDS_DATA = re.compile(r'\bDATA\b|\.\./shared/data\b')
LONGEST = 1800
"""Seconds after which a command is given up."""


@dataclass(frozen=True)
class Command:
    """A command of a page.

    Attributes:
        page: path in the repository.
        text: as the page has it, in one line, without its comment.
    """

    page: str
    text: str

    def named(self) -> str:
        """With the files of the demo in place of a reader's."""
        return substituted(self.text, NAMED)

    def run_as(self, data: Path | None) -> str:
        """What is run."""
        text = substituted(self.named(), SHORTER)
        return NEEDS_DATA.sub(str(data), text) if data else text

    def skipped(self, data: Path | None) -> str:
        """Why it is not run; empty where it is."""
        for pattern, reason in SKIPPED:
            if re.search(pattern, self.named()):
                return reason
        for pattern, has, reason in MISSING:
            if re.search(pattern, self.named()) and not has():
                return reason
        return 'needs data: --data' if NEEDS_DATA.search(self.text) and data is None else ''


def substituted(text: str, changes: Sequence[tuple[str, str]]) -> str:
    for pattern, replacement in changes:
        text = re.sub(pattern, replacement, text)
    return text


def pages() -> list[Path]:
    """What users read: README and the pages of docs/, without those of single decisions and tables."""
    found = sorted(path for path in (ROOT / 'docs').glob('*.md') if path.name not in NO_COMMANDS)
    return [ROOT / 'README.md', *found]


def commands(page: Path) -> Iterator[Command]:
    """The commands in the indented and fenced blocks of a page, in their order."""
    name = str(page.relative_to(ROOT))
    for block in blocks(page.read_text(encoding='utf-8')):
        lines = iter(block)
        for line in lines:
            if not BEGINNINGS.match(line):
                continue
            while line.endswith('\\'):
                line = f'{line[:-1].rstrip()} {next(lines).strip()}'
            yield Command(name, re.sub(r'\s+# .*| +#$', '', line).rstrip())


def blocks(text: str) -> Iterator[list[str]]:
    """The lines of each block of code, without their margin."""
    block: list[str] = []
    fenced = False
    before = ''
    for line in [*text.splitlines(), '']:
        if line.startswith('```'):
            fenced = not fenced
            if block:
                yield block
            block = []
        elif fenced:
            block.append(line)
        elif line.startswith('    ') and (block or not before.strip()):
            block.append(line[4:])
        elif block:
            yield block
            block = []
        before = line


def prepare(folder: Path) -> None:
    """The files that pages take for granted: a detector, images of its kind, and a file that was made of it."""
    folder.mkdir(parents=True)
    made = folder / 'made'
    for name in ('tools', 'configs', 'demo'):
        (folder / name).symlink_to(ROOT / name)
    for name in ('benchmarks', 'zoo'):
        (folder / 'docs' / name).mkdir(parents=True)
    config = ROOT / 'configs' / 'demo' / 'gfl_r18_fpn_digits.py'
    (folder / 'cfg.py').write_text(f'_base_ = {str(config)!r}\n', encoding='utf-8')
    (folder / 'ckpt.pth').symlink_to(ROOT / 'demo' / 'gfl_r18_fpn_digits.pth')
    call('python tools/maintain/make_digits.py', folder)
    photos = folder / 'photos'
    photos.mkdir()
    for path in sorted((folder / 'data' / 'demo_digits' / 'images' / 'train').iterdir())[:32]:
        shutil.copy(path, photos)
    call('mmriem compress cfg.py ckpt.pth --bits 1 --no-progress --out made/ckpt.riem', folder)
    for place in ('.', 'out'):
        (folder / place).mkdir(exist_ok=True)
        for suffix in ('.riem', '.py'):
            shutil.copy(made / f'ckpt{suffix}', folder / place)
    shutil.copy(made / 'ckpt.riem', folder / 'x.riem')


def call(text: str, folder: Path) -> subprocess.CompletedProcess:
    """Run a command in a shell, with this Python and this checkout before any other."""
    search = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get('PATH', '')])
    environment = {**os.environ, 'PATH': search, 'PYTHONPATH': str(ROOT)}
    done = subprocess.run(
        ['bash', '-c', text], cwd=folder, env=environment, capture_output=True, text=True, timeout=LONGEST
    )
    if done.returncode:
        print(done.stdout[-1500:], done.stderr[-3000:], sep='\n', file=sys.stderr)
    return done


def run_page(page: Path, prepared: Path, work_dir: Path, data: Path | None, rows: list[dict]) -> Iterator[dict]:
    """A row for each command of a page; what ran well already, by `rows`, is not run again."""
    folder = work_dir / page.stem
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(prepared, folder, symlinks=True)
    for command in commands(page):
        reason, text = command.skipped(data), command.run_as(data)
        row = {**asdict(command), 'run': text, 'result': f'skipped: {reason}', 'seconds': None}
        ran = next((old for old in rows if old['run'] == text and old['result'] == 'well'), None)
        if not reason and ran:
            same = ran['page'] == command.page
            row |= {'result': 'well', 'seconds': ran['seconds']} if same else {'result': f'well, on {ran["page"]}'}
        elif not reason:
            row |= outcome(text, folder)
            print(f'{command.page}: {text}: {row["result"]}, {row["seconds"]:.0f} s of CPU', flush=True)
        yield row
    shutil.rmtree(folder)


def outcome(text: str, folder: Path) -> dict:
    """How a command ended, and the CPU seconds that it took."""
    before = cpu_seconds()
    try:
        code = call(text, folder).returncode
    except subprocess.TimeoutExpired:
        code = 124
    return {'result': 'well' if code == 0 else f'FAILED, exit status {code}', 'seconds': cpu_seconds() - before}


def row_of(command: Command, rows: Sequence[dict], data: Path | None) -> dict:
    """The row of a command; that it was not run where there is none."""
    for row in rows:
        if (row['page'], row['text']) == (command.page, command.text):
            return row
    reason = command.skipped(data)
    result = f'skipped: {reason}' if reason else 'not run'
    return {**asdict(command), 'run': command.run_as(data), 'result': result, 'seconds': None}


def cpu_seconds() -> float:
    """Of all processes that were started from here and have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def table(rows: Sequence[dict]) -> str:
    """The page docs/commands.md."""
    ran = sum(row['result'].startswith('well') for row in rows)
    lines = [
        '# Every command of these pages',
        '',
        '    python tools/maintain/run_documented.py --work-dir DIR --data DATA',
        '',
        'runs the commands of README and of these pages in scratch folders, with the demo detector in place of a',
        "reader's own, and writes this table. Existing outputs are replaced (`--force`), and what takes long is run",
        'with smaller numbers: `--list` shows how. A test checks of all of them, those that are skipped too, that the',
        'program takes their arguments and that the files which they name exist.',
        '',
        f'{ran} of {len(rows)} commands ran well.',
        '',
        '| page | command | result | CPU seconds |',
        '|---|---|---|---|',
    ]
    for row in rows:
        name = row['page'].removeprefix('docs/')
        link = f'[{name}]({"../" if name == "README.md" else ""}{name})'
        seconds = '' if row['seconds'] is None else f'{row["seconds"]:.0f}'
        shown = row['text'].replace('|', '\\|')
        lines.append(f'| {link} | `{shown}` | {row["result"]} | {seconds} |')
    return '\n'.join(lines) + '\n'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--work-dir', type=Path, help='scratch folder')
    parser.add_argument('--pages', nargs='+', help='names of the pages to run (default: all)')
    parser.add_argument('--data', type=Path, help='what DATA stands for in docs/benchmarks.md')
    parser.add_argument('--list', action='store_true', help='print the commands, and run none')
    args = parser.parse_args()
    chosen = [page for page in pages() if not args.pages or page.name in args.pages]
    if args.list or args.work_dir is None:
        for command in (command for page in chosen for command in commands(page)):
            reason = command.skipped(args.data)
            print(f'{command.page}: {command.run_as(args.data)}' + (f'   [skipped: {reason}]' if reason else ''))
        return
    work_dir = args.work_dir.resolve()
    prepared, kept = work_dir / 'prepared', work_dir / 'rows.json'
    if not prepared.exists():
        prepare(prepared)
    data = args.data.resolve() if args.data else None
    rows = json.loads(kept.read_text(encoding='utf-8')) if kept.exists() else []
    for page in chosen:
        for row in run_page(page, prepared, work_dir, data, rows):
            rows = [old for old in rows if (old['page'], old['text']) != (row['page'], row['text'])] + [row]
            kept.write_text(json.dumps(rows, indent=1), encoding='utf-8')
    rows = [row_of(command, rows, data) for page in pages() for command in commands(page)]
    (ROOT / 'docs' / 'commands.md').write_text(table(rows), encoding='utf-8')
    failed = [row for row in rows if row['result'].startswith('FAILED')]
    for row in failed:
        print(f'{row["page"]}: {row["run"]}: {row["result"]}', file=sys.stderr)
    sys.exit(bool(failed))


if __name__ == '__main__':
    main()
