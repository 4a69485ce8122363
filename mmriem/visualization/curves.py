"""Accuracy over file size, one panel for each detector and one line for each method."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

__all__ = ['draw_curves']

COLOURS = ('#0072b2', '#d55e00', '#009e73', '#cc79a7', '#e69f00', '#56b4e9')
"""Okabe and Ito's palette, told apart by colour-blind readers too."""


def draw_curves(rows: Sequence[Mapping[str, Any]], path: str | os.PathLike) -> None:
    """Draw the rows of a comparison as a PNG.

    Args:
        rows: with `detector`, `method`, `bytes` and `mAP`; a method that starts with `original` is the dashed line.
        path: the file to write.
    """
    detectors = list(dict.fromkeys(row['detector'] for row in rows))
    methods = [name for name in dict.fromkeys(row['method'] for row in rows) if not name.startswith('original')]
    figure = Figure(figsize=(1 + 3.6 * len(detectors), 3.8), layout='constrained')
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(detectors), squeeze=False)[0]
    for panel, detector in zip(panels, detectors):
        of_detector = [row for row in rows if row['detector'] == detector]
        for row in of_detector:
            if row['method'].startswith('original'):
                panel.axhline(row['mAP'], color='0.4', linestyle='--', linewidth=1, label='original')
        for number, method in enumerate(methods):
            points = sorted((row['bytes'] / 1e3, row['mAP']) for row in of_detector if row['method'] == method)
            style = {'color': COLOURS[number % len(COLOURS)], 'marker': 'osD^v<'[number % 6]}
            panel.plot(*zip(*points), label=method, linewidth=1.5, markersize=5, **style)
        panel.set_title(detector, fontsize=9)
        panel.set_xlabel('file, KB')
        panel.set_ylim(bottom=0)
        panel.set_xlim(left=0)
        panel.grid(alpha=0.3)
        panel.spines[['top', 'right']].set_visible(False)
    panels[0].set_ylabel('box mAP')
    lines, labels = panels[0].get_legend_handles_labels()
    figure.legend(lines, labels, loc='outside lower center', ncols=len(labels), frameon=False, fontsize=9)
    figure.savefig(path, dpi=110, metadata={'Software': None})
