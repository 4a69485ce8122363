"""The tables and the picture of a benchmark."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from mmriem.visualization import command_and_machine, draw_curves, markdown, write_csv

from .runner import ORIGINAL

__all__ = ['COLUMNS', 'smallest', 'write_results']

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
    'setting, recalibrated': '{}',
    'bytes, recalibrated': '{:,}',
}
POINTS = 1.0
"""How far below the original a file may be to count as about as good."""

Row = Mapping[str, Any]


def smallest(rows: Sequence[Row], measure: str = 'accuracy') -> dict[tuple[str, str], Row]:
    """By network and method, the row with the fewest bytes among those at most `POINTS` below the original.

    Args:
        rows: of the whole table.
        measure: the column that counts, `accuracy` or `recalibrated`; where a row has no such figure, its accuracy.
    """
    originals = {row['network']: row['accuracy'] for row in rows if row['method'] == ORIGINAL}
    found: dict[tuple[str, str], Row] = {}
    for row in rows:
        accuracy = row['accuracy'] if row[measure] is None else row[measure]
        if row['method'] != ORIGINAL and accuracy >= originals[row['network']] - POINTS - 1e-9:
            best = found.get(place := (row['network'], row['method']))
            found[place] = row if best is None or row['bytes'] < best['bytes'] else best
    return found


def summary(rows: Sequence[Row], own: Sequence[str]) -> str:
    """Markdown: the smallest files that are about as good as the original, and how mmriem's compare with the peers'.

    Args:
        rows: of the whole table.
        own: the methods that are mmriem's.
    """
    plain, recalibrated = smallest(rows), smallest(rows, 'recalibrated')
    lines, quotients = [], []
    for network in dict.fromkeys(row['network'] for row in rows):
        places = dict.fromkeys((row['network'], row['method']) for row in rows if row['network'] == network)
        for place in places:
            if place in recalibrated:
                row, again = plain.get(place, {}), recalibrated[place]
                told = {key: row.get(key) for key in SUMMARY}
                more = {'setting, recalibrated': again['setting'], 'bytes, recalibrated': again['bytes']}
                lines.append({**told, 'network': network, 'method': place[1], **more})
        quotients += [
            f'- {network}: {_quotient(network, plain, own)}; peers recalibrated: '
            f'{_quotient(network, recalibrated, own)}\n'
        ]
    return (
        f'Smallest file within {POINTS:.1f} point of the original:\n\n{markdown(lines, SUMMARY)}\n'
        f'Bytes of the smallest such file of mmriem over those of the best peer:\n\n{"".join(quotients)}'
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
    parts = [markdown(rows, COLUMNS), *(f'- {note}\n' for note in notes), summary(rows, own), command_and_machine()]
    with TemporaryDirectory(dir=folder, prefix='.') as fresh:
        write_csv(rows, COLUMNS, Path(fresh) / 'table.csv')
        (Path(fresh) / 'table.md').write_text(_paragraphs(parts), encoding='utf-8')
        draw_curves(
            rows, Path(fresh) / 'picture.png', panel='network', value='accuracy', label='mAP or top-1, %', log=True
        )
        for path in Path(fresh).iterdir():
            os.replace(path, folder / path.name)


def _paragraphs(parts: Sequence[str]) -> str:
    """The parts with a blank line between, items of a list without."""
    text = ''
    for part in parts:
        text += part if not text or (text.splitlines()[-1][:2] == part[:2] == '- ') else f'\n{part}'
    return text
