"""The tables and the picture of a benchmark."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmriem.core.atomic import remove_leftovers, scratch_folder
from mmriem.visualization import command_and_machine, draw_curves, markdown, write_csv

from .names import NAMES, PEERS
from .runner import ORIGINAL

__all__ = [
    'COLUMNS',
    'SPEED_COLUMNS',
    'joined',
    'quotients',
    'read_rows',
    'rising',
    'smallest',
    'table_text',
    'write_results',
]

COLUMNS = {
    'network': '{}',
    'method': '{}',
    'setting': '{}',
    'bytes': '{:,}',
    'bits/weight': '{:.2f}',
    'accuracy': '{:.2f}',
    'recalibrated': '{:.2f}',
    'encode s': '{:.1f}',
    'decode s': '{:.1f}',
    'peak MB': '{:.0f}',
}
SUMMARY = {
    'network': '{}',
    'method': '{}',
    'setting': '{}',
    'bytes': '{:,}',
    'bits/weight': '{:.2f}',
    'accuracy': '{:.2f}',
    'smoothed': '{:.2f}',
    'setting, recalibrated': '{}',
    'bytes, recalibrated': '{:,}',
}
SPEED_COLUMNS = {
    'network': '{}',
    'weights': '{}',
    'elements': '{:,}',
    'bytes': '{:,}',
    'encode s': '{:.1f}',
    'encode us/element': '{:.2f}',
    'read s': '{:.3f}',
    'decode s': '{:.3f}',
    'load s': '{:.3f}',
    'torch.load s': '{:.3f}',
    'load s, cold': '{:.3f}',
    'torch.load s, cold': '{:.3f}',
    'load s, new process': '{:.3f}',
    'torch.load s, new process': '{:.3f}',
    'dense s/image': '{:.3f}',
    'live s/image': '{:.3f}',
    'live, first s': '{:.3f}',
}
"""Columns of the table that `tools/measure/speed.py` makes."""
POINTS = 1.0
"""How far below the original a file may be to count as about as good."""
RATES = ('bits', 'ratio', 'size', 'tolerance', 'qp')
"""Settings that decide the size of a file."""

Row = Mapping[str, Any]


def smallest(rows: Sequence[Row], measure: str = 'accuracy') -> dict[tuple[str, str], Row]:
    """By network and method, the row with the fewest bytes that is at most `POINTS` below the original.

    What counts is not its own figure, which scatters, but the curve through all files of the method: the rising one
    that is closest to them. So the luckiest file is not chosen. `smoothed` of a row is that curve at its bytes.

    Args:
        rows: of the whole table.
        measure: the column that counts, `accuracy` or `recalibrated`; where a row has no such figure, its accuracy.
    """
    originals = {row['network']: row['accuracy'] for row in rows if row['method'] == ORIGINAL}
    series: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        if row['method'] != ORIGINAL:
            series.setdefault((row['network'], row['method'], _without_rate(row['setting'])), []).append(row)
    found: dict[tuple[str, str], Row] = {}
    for (network, method, _), its in series.items():
        its = sorted(its, key=lambda row: row['bytes'])
        curve = rising([row['accuracy'] if row[measure] is None else row[measure] for row in its])
        good = (
            {**row, 'smoothed': smoothed}
            for row, smoothed in zip(its, curve)
            if smoothed >= originals[network] - POINTS - 1e-9
        )
        first, best = next(good, None), found.get((network, method))
        if first is not None and (best is None or first['bytes'] < best['bytes']):
            found[network, method] = first
    return found


def rising(values: Sequence[float]) -> list[float]:
    """The sequence that never falls and is closest to the values in the mean square: neighbours that fall are averaged.

    >>> rising([1.0, 4.0, 2.0, 3.0, 5.0])
    [1.0, 3.0, 3.0, 3.0, 5.0]
    """
    blocks: list[tuple[float, int]] = []  # sum and count
    for value in values:
        blocks.append((value, 1))
        while len(blocks) > 1 and blocks[-2][0] / blocks[-2][1] > blocks[-1][0] / blocks[-1][1]:
            (total, count), (before, others) = blocks.pop(), blocks.pop()
            blocks.append((total + before, count + others))
    return [total / count for total, count in blocks for _ in range(count)]


def _without_rate(setting: str) -> str:
    """A setting but for what decides the size, which varies along a curve.

    >>> _without_rate('bits=1.7, tuning=300')
    'tuning=300'
    """
    parts = [part.strip() for part in setting.split(',')]
    return ', '.join(part for part in parts if part.partition('=')[0] not in RATES)


def summary(rows: Sequence[Row], own: Sequence[str]) -> str:
    """Markdown: the smallest files that are about as good as the original, and how mmriem's compare with the peers'.

    Args:
        rows: of the whole table.
        own: the methods that are mmriem's.
    """
    plain, recalibrated = smallest(rows), smallest(rows, 'recalibrated')
    lines = []
    for place in dict.fromkeys((row['network'], row['method']) for row in rows):
        if place in recalibrated:
            row, again = plain.get(place, {}), recalibrated[place]
            told = {key: row.get(key) for key in SUMMARY}
            more = {'setting, recalibrated': again['setting'], 'bytes, recalibrated': again['bytes']}
            lines.append({**told, 'network': place[0], 'method': place[1], **more})
    return (
        f'Smallest file within {POINTS:.1f} point of the original, by the rising curve through the files of its method '
        f'(smoothed):\n\n{markdown(lines, SUMMARY)}\n'
        f'Bytes of the smallest such file of mmriem over those of the best peer:\n\n{quotients(rows, own)}'
    )


def quotients(rows: Sequence[Row], own: Sequence[str]) -> str:
    """Markdown: by network, the bytes of the smallest good file of mmriem over those of the best peer's."""
    plain, recalibrated = smallest(rows), smallest(rows, 'recalibrated')
    return ''.join(
        f'- {network}: {_quotient(network, plain, own)}; peers recalibrated: {_quotient(network, recalibrated, own)}\n'
        for network in dict.fromkeys(row['network'] for row in rows)
    )


def _quotient(network: str, found: Mapping[tuple[str, str], Row], own: Sequence[str]) -> str:
    sizes: dict[bool, list[tuple[int, str]]] = {True: [], False: []}
    for (of, method), row in found.items():
        if of == network:
            sizes[method in own].append((row['bytes'], method))
    if not sizes[True] or not sizes[False]:
        return 'no such file of mmriem' if not sizes[True] else 'no such file of a peer'
    ours, theirs = min(sizes[True]), min(sizes[False])
    return f'{ours[0] / theirs[0]:.3f} ({ours[1]} over {theirs[1]})'


def write_results(rows: Sequence[Row], folder: str | os.PathLike, own: Sequence[str], notes: Sequence[str]) -> None:
    """Write `table.csv`, `table.md` and `picture.png`; each is replaced whole.

    Args:
        rows: with the keys of `COLUMNS`.
        folder: where to write; it is made.
        own: the methods that are mmriem's.
        notes: lines on what is left out.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    text = table_text(rows, own, notes, command_and_machine())
    remove_leftovers(folder)
    with scratch_folder(folder / 'table') as fresh:
        write_csv(rows, COLUMNS, fresh / 'table.csv')
        (fresh / 'table.md').write_text(text, encoding='utf-8')
        draw_curves(
            rows,
            fresh / 'picture.png',
            panel='network',
            value='accuracy',
            label='mAP or top-1, %',
            log=True,
            names={**NAMES, **PEERS},
        )
        for name in ('table.csv', 'table.md', 'picture.png'):
            os.replace(fresh / name, folder / name)


def table_text(rows: Sequence[Row], own: Sequence[str], notes: Sequence[str], origin: str) -> str:
    """What `table.md` says: all rows, what is left out, the summary, and where the figures come from."""
    return _paragraphs([markdown(rows, COLUMNS), *(f'- {note}\n' for note in notes), summary(rows, own), origin])


def read_rows(path: str | os.PathLike) -> list[dict[str, Any]]:
    """The rows of a `.csv` that `write_csv` has written: numbers as numbers, None where there is no figure."""
    with open(path, newline='', encoding='utf-8') as file:
        return [{key: _value(key, text) for key, text in row.items()} for row in csv.DictReader(file)]


def joined(kept: Sequence[Row], rows: Sequence[Row]) -> list[Row]:
    """The rows of an earlier run and of this one, by network and method in the order in which these first appear.

    Args:
        kept: of the earlier run; those of a network and method that `rows` has, too, are left out.
        rows: of this run.
    """
    anew = {(row['network'], row['method']) for row in rows}
    found = [*(row for row in kept if (row['network'], row['method']) not in anew), *rows]
    known = [*kept, *rows]
    networks, methods = (list(dict.fromkeys(row[key] for row in known)) for key in ('network', 'method'))
    return sorted(found, key=lambda row: (networks.index(row['network']), methods.index(row['method'])))


def _value(key: str, text: str) -> Any:
    if key in ('network', 'method', 'setting'):
        return text
    if not text:
        return None
    return int(text) if text.lstrip('-').isdigit() else float(text)


def _paragraphs(parts: Sequence[str]) -> str:
    """The parts with a blank line between, items of a list without."""
    text = ''
    for part in parts:
        text += part if not text or (text.splitlines()[-1][:2] == part[:2] == '- ') else f'\n{part}'
    return text
