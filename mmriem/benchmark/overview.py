"""The table of README: what each network is worth before and after, in a few words, from the table of a benchmark."""

from __future__ import annotations

import re
from collections.abc import Sequence

from .names import NAMES, PEERS
from .runner import ORIGINAL
from .table import Row, smallest

__all__ = ['overview']

DEFAULT, SMALLEST = 'mmriem default', 'mmriem lattice'
HEADS = (
    'box mAP x 100, or top-1',
    'fp32',
    'default of `mmriem compress`',
    'smallest within one point',
    'best other method within one point',
)


def overview(rows: Sequence[Row]) -> str:
    """Markdown, a line for each network of `NAMES` that the rows have.

    Args:
        rows: of the whole table, with figures of mmriem's default and of its lattice at many rates.
    """
    lines = [HEADS, ['---'] * len(HEADS)]
    plain, recalibrated = smallest(rows), smallest(rows, 'recalibrated')
    for network, name in NAMES.items():
        its = {row['method']: row for row in rows if row['network'] == network and row['method'] in (ORIGINAL, DEFAULT)}
        if ORIGINAL in its:
            full = its[ORIGINAL]['bytes']
            small = plain.get((network, SMALLEST))
            lines.append(
                (
                    name,
                    f'{its[ORIGINAL]["accuracy"]:.1f}, {megabytes(full)}',
                    _told(its[DEFAULT], its[DEFAULT]['accuracy'], full),
                    f'**{_told(small, small["accuracy"], full)}**' if small else '-',
                    _best_peer(network, plain, recalibrated),
                )
            )
    return ''.join(f'| {" | ".join(line)} |\n' for line in lines)


def megabytes(count: float) -> str:
    """Bytes in three digits.

    >>> megabytes(52_628_988), megabytes(578_555), megabytes(66_704)
    ('52.6 MB', '0.579 MB', '0.0667 MB')
    """
    return f'{count / 1e6:#.3g} MB'.replace('. MB', ' MB')


def _told(row: Row, accuracy: float, full: int) -> str:
    return f'{accuracy:.1f} in {megabytes(row["bytes"])} ({full / row["bytes"]:.2g}x)'


def _best_peer(network: str, plain: dict, recalibrated: dict) -> str:
    found = []
    for is_recalibrated, table in ((False, plain), (True, recalibrated)):
        for (of, method), row in table.items():
            if of == network and method in PEERS:
                corrected = row['recalibrated'] if is_recalibrated else None
                accuracy = row['accuracy'] if corrected is None else corrected
                found.append((row['bytes'], is_recalibrated, method, row['setting'], accuracy))
    if not found:
        return '-'
    size, is_recalibrated, method, setting, accuracy = min(found)
    bits = re.search(r'bits=(\d+)', setting)
    how = [PEERS[method], *([f'{bits[1]} bits'] if bits else []), *(['recalibrated'] if is_recalibrated else [])]
    return f'{accuracy:.1f} in {megabytes(size)} ({", ".join(how)})'
