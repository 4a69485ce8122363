"""Write the tables of README and docs anew from the committed .csv files; --check only compares.

    python tools/measure/regenerate_tables.py [--check]

A page has a generated part between the lines `<!-- table: NAME -->` and `<!-- end of table -->`.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from mmriem.benchmark.overview import overview
from mmriem.benchmark.table import SPEED_COLUMNS, quotients, read_rows, table_text
from mmriem.core.errors import RiemError
from mmriem.program import run
from mmriem.visualization import markdown

ROOT = next(folder for folder in Path(__file__).resolve().parents if (folder / 'README.md').is_file())
END = '<!-- end of table -->'


def between_marks(page: str, name: str, text: str, path: Path) -> str:
    """The page with that text as its part of that name.

    Raises:
        RiemError: the page has no such part.
    """
    start = f'<!-- table: {name} -->'
    before, found, rest = page.partition(start)
    _, ended, after = rest.partition(END)
    if not found or not ended:
        raise RiemError(f'{path}: expected a line {start} and after it {END}, found none; put them back')
    return f'{before}{start}\n{text}{END}{after}'


def benchmark_table(old: str, rows: list[dict], own: list[str]) -> str:
    """`table.md`: its figures anew, what it says of left out methods, of the command and the machine as it is."""
    head, _, tail = old.partition('\nSmallest file')
    notes = [line[2:] for line in head.splitlines() if line.startswith('- ')]
    return table_text(rows, own, notes, tail[tail.index('`python ') :])


def pages(root: Path) -> dict[Path, str]:
    """Every page with generated parts, as it should be."""
    folder = root / 'docs' / 'benchmarks'
    rows, speed = read_rows(folder / 'table.csv'), read_rows(folder / 'speed.csv')
    own = sorted({row['method'] for row in rows if row['method'].startswith('mmriem')})

    def read(path: Path) -> str:
        return path.read_text(encoding='utf-8')

    readme, docs = root / 'README.md', root / 'docs' / 'benchmarks.md'
    table, seconds = folder / 'table.md', folder / 'speed.md'
    return {
        readme: between_marks(read(readme), 'overview', overview(rows), readme),
        docs: between_marks(read(docs), 'quotients', quotients(rows, own), docs),
        table: benchmark_table(read(table), rows, own),
        seconds: markdown(speed, SPEED_COLUMNS) + read(seconds)[read(seconds).index('\n\n') + 1 :],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        '--check', action='store_true', help='write nothing; exit 1 where a page is not as it should be'
    )
    parser.add_argument('--root', type=Path, default=ROOT, help='folder of README.md (default: of this project)')
    args = parser.parse_args()
    stale = {path: text for path, text in pages(args.root).items() if path.read_text(encoding='utf-8') != text}
    for path, text in stale.items():
        if not args.check:
            path.write_text(text, encoding='utf-8')
        print(f'{path.relative_to(args.root)}: {"differs from its .csv" if args.check else "written"}')
    sys.exit(1 if args.check and stale else 0)


if __name__ == '__main__':
    run(main)
