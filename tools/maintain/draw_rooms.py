"""Draw the rooms of the core and what imports what, from the imports themselves: docs/architecture.png.

python tools/maintain/draw_rooms.py [--out docs/architecture.png]
"""

from __future__ import annotations

import argparse
import ast
from collections import Counter
from pathlib import Path

CORE = Path(__file__).parents[2] / 'mmriem' / 'core'
FLOORS = (
    ('coding', 'weights', 'execution'),
    ('representations', 'images'),
    ('metric', 'budget', 'file'),
    ('correction', 'live'),
    ('pipeline',),
)
"""Rooms from the lowest floor to the highest; a room imports from rooms before it only."""
ROOMS = tuple(room for floor in FLOORS for room in floor)
WIDTH, HEIGHT = 1.9, 0.62


def imported(path: Path) -> set[tuple[str, ...]]:
    """Names below `mmriem.core` that a file imports, absolute or relative: module and name as parts."""
    package, found = path.relative_to(CORE).parent.parts, set()
    for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
        if isinstance(node, ast.ImportFrom):
            above = ('mmriem', 'core', *package)[: len(package) + 3 - node.level] if node.level else ()
            names = (*above, *(node.module or '').split('.')) if node.module else above
            if names[:2] == ('mmriem', 'core'):
                found |= {(*names[2:], alias.name) for alias in node.names}
        elif isinstance(node, ast.Import):
            parts = [tuple(alias.name.split('.')) for alias in node.names]
            found |= {names[2:] for names in parts if names[:2] == ('mmriem', 'core')}
    return found


def room_of(names: tuple[str, ...]) -> str | None:
    """The room of a module below `mmriem.core`; None for the few modules that all rooms share."""
    return names[0] if names and names[0] in ROOMS else None


def arrows() -> Counter[tuple[str, str]]:
    """How many imports lead from each room to each other one."""
    found: Counter[tuple[str, str]] = Counter()
    for path in CORE.rglob('*.py'):
        own = room_of(path.relative_to(CORE).parts)
        for names in imported(path) if own else ():
            room = room_of(names)
            if room not in (None, own):
                found[own, room] += 1
    return found


def draw(out: Path) -> None:
    """The picture: a box for each room with its lines of code, and an arrow for each import between rooms."""
    import matplotlib

    matplotlib.use('Agg')
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(9, 6.5))
    places = {}
    for level, floor in enumerate(FLOORS):
        for number, room in enumerate(floor):
            places[room] = ((number + 0.5) * 9 / len(floor), level * 1.35)
    for (here, there), count in sorted(arrows().items()):
        (x, y), (to_x, to_y) = places[here], places[there]
        aside = 0 if y != to_y else WIDTH / 2 if to_x > x else -WIDTH / 2
        down = HEIGHT / 2 if y != to_y else 0
        style = dict(arrowstyle='-|>', color='#7a8aa0', lw=0.6 + 0.12 * min(count, 15), shrinkA=0, shrinkB=0)
        axes.annotate('', (to_x - aside, to_y + down), (x + aside, y - down), arrowprops=style)
    for room, (x, y) in places.items():
        lines = sum(len(path.read_text(encoding='utf-8').splitlines()) for path in (CORE / room).rglob('*.py'))
        box = dict(facecolor='#eef3fa', edgecolor='#35506e', linewidth=1.2, zorder=3)
        axes.add_patch(plt.Rectangle((x - WIDTH / 2, y - HEIGHT / 2), WIDTH, HEIGHT, **box))
        axes.text(x, y + 0.08, room, ha='center', va='center', fontsize=11, weight='bold', zorder=4)
        axes.text(x, y - 0.17, f'{lines:,} lines', ha='center', va='center', fontsize=8, color='#555555', zorder=4)
    axes.set(xlim=(0, 9), ylim=(-0.6, 1.35 * (len(FLOORS) - 1) + 0.6))
    axes.axis('off')
    figure.savefig(out, dpi=110, bbox_inches='tight', metadata={'Software': None})
    plt.close(figure)


def main() -> None:
    """Draw what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--out', type=Path, default=CORE.parents[1] / 'docs' / 'architecture.png')
    draw(parser.parse_args().out)


if __name__ == '__main__':
    main()
