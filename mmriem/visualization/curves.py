"""Accuracy over file size, one panel for each network and one line for each method."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

__all__ = ['draw_curves']

COLOURS = ('#0072b2', '#d55e00', '#009e73', '#cc79a7', '#e69f00', '#56b4e9', '#000000', '#999999')
"""Okabe and Ito's palette, told apart by colour-blind readers too; grey for its yellow, which is too pale for lines."""
MARKERS = 'osD^v<>P'
PANELS_IN_A_ROW = 4
ZOOM = 0.7
"""Share of the best accuracy below which nothing is of interest."""


def draw_curves(
    rows: Sequence[Mapping[str, Any]],
    path: str | os.PathLike,
    *,
    panel: str = 'detector',
    value: str = 'mAP',
    label: str = 'box mAP',
    log: bool = False,
    zoom: bool = False,
    names: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Draw the rows of a comparison as a PNG.

    Args:
        rows: with `method`, `bytes`, and what the next two name; a method that starts with `original` is the dashed
            line.
        path: the file to write.
        panel: key of the network.
        value: key of the accuracy.
        label: of the axis of the accuracy.
        log: whether the axis of the bytes is logarithmic.
        zoom: whether the axis of the accuracy begins at `ZOOM` of the original's, or at the least value if that is
            higher, and not at 0.
        names: what networks and methods are called in the picture, where that is not what the rows say.
    """
    networks = list(dict.fromkeys(row[panel] for row in rows))
    methods = [name for name in dict.fromkeys(row['method'] for row in rows) if not name.startswith('original')]
    across = min(len(networks), PANELS_IN_A_ROW)
    down = -(-len(networks) // PANELS_IN_A_ROW)
    figure = Figure(figsize=(1 + 3.6 * across, 3.8 * down), layout='constrained')
    FigureCanvasAgg(figure)
    panels = figure.subplots(down, across, squeeze=False)
    shown = {}
    for axes, network in zip(panels.flat, networks):
        of_network = [row for row in rows if row[panel] == network]
        for row in of_network:
            if row['method'].startswith('original'):
                shown['original'] = axes.axhline(row[value], color='0.4', linestyle='--', linewidth=1)
        for number, method in enumerate(methods):
            points = sorted((row['bytes'] / 1e3, row[value]) for row in of_network if row['method'] == method)
            if points:
                style = {'color': COLOURS[number % len(COLOURS)], 'marker': MARKERS[number % len(MARKERS)]}
                (shown[method],) = axes.plot(*zip(*points), linewidth=1.5, markersize=5, **style)
        axes.set_title(names.get(network, network), fontsize=9)
        axes.set_xlabel('file, KB')
        axes.set_ylim(bottom=_bottom([row[value] for row in of_network]) if zoom else 0)
        if log:
            axes.set_xscale('log')
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.xaxis.set_major_formatter('{x:,.0f}')
            axes.xaxis.set_minor_formatter(NullFormatter())
        else:
            axes.set_xlim(left=0)
        axes.grid(alpha=0.3)
        axes.spines[['top', 'right']].set_visible(False)
    for axes in panels.flat[len(networks) :]:
        axes.set_visible(False)
    for axes in panels[:, 0]:
        axes.set_ylabel(label)
    labels = [names.get(method, method) for method in shown]
    figure.legend(shown.values(), labels, loc='outside lower center', ncols=len(shown), frameon=False, fontsize=9)
    figure.savefig(path, dpi=110, metadata={'Software': None})


def _bottom(values: Sequence[float]) -> float:
    """Where an axis begins that shows what is of interest.

    >>> _bottom([0.5, 0.1]), _bottom([0.5, 0.45])
    (0.35, 0.4475)
    """
    best = max(values)
    least = max(ZOOM * best, min(values))
    return least if least == ZOOM * best else least - (best - least) / 20
