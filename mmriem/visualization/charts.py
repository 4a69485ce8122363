"""Charts of the report page as inline SVG, in the page's own colours, light or dark."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

__all__ = ['bytes_chart', 'curve_chart', 'told_bytes']

WIDTH, HEIGHT, LEFT, GAP = 980, 220, 64, 6
"""Of the picture of all weights, in pixels: of its bars without the axis, of the axis, between bars and distortion."""
BASE = HEIGHT + 10
DAMAGE_HEIGHT = 80
TICKS = 6
"""Most labelled lines of an axis, about."""


def bytes_chart(weights: Sequence[Mapping[str, Any]], colours: Mapping[str, str]) -> str:
    """A bar for each weight, as wide as it has elements and as high as it has bits for each; below, its distortion.

    Args:
        weights: of a report.
        colours: by the first part of their names.
    """
    elements = sum(math.prod(weight['shape']) for weight in weights)
    highest = max(weight['bits_per_weight'] for weight in weights) or 1.0
    distortion = sum(weight['distortion'] or 0.0 for weight in weights)
    tallest = max((weight['distortion'] or 0.0 for weight in weights), default=0.0)
    low = BASE + GAP + DAMAGE_HEIGHT
    shapes, x = [_bits_axis(highest), _elements_axis(elements, low)], float(LEFT)
    for weight in weights:
        width = WIDTH * math.prod(weight['shape']) / elements
        height = HEIGHT * weight['bits_per_weight'] / highest
        told = f'{weight["name"]}: {weight["bits_per_weight"]:.2f} bits, {told_bytes(weight["bits"] / 8)}'
        if weight['distortion'] and distortion:
            told += f', {100 * weight["distortion"] / distortion:.1f} % of the distortion'
        fill = f'fill="{colours[weight["name"].split(".")[0]]}" class="bar"'
        bars = f'<rect x="{x:.2f}" y="{BASE - height:.2f}" width="{width:.2f}" height="{height:.2f}" {fill}/>'
        if weight['distortion'] and tallest:
            depth = DAMAGE_HEIGHT * weight['distortion'] / tallest
            bars += f'<rect x="{x:.2f}" y="{BASE + GAP}" width="{max(width, 1):.2f}" height="{depth:.2f}" {fill}/>'
        shapes.append(f'<g class="weight"><title>{escape(told)}</title>{bars}</g>')
        x += width
    return _svg(LEFT + WIDTH + 10, low + 44, shapes, 'bits and distortion of each weight')


def curve_chart(points: Sequence[tuple[float, float, str]], label: str, *, log: bool = False) -> str:
    """Values over file sizes, joined by a line.

    Args:
        points: bytes, value, and a text for each.
        label: of the axis of the values.
        log: whether that axis is logarithmic; its values are then above 0.
    """
    points = sorted(points)
    wide, high = 640, 240
    sizes, values = [size for size, *_ in points], [math.log10(v) if log else v for _, v, _ in points]
    span = (max(values) - min(values)) or 1.0
    bottom, top, right = min(values) - 0.1 * span, max(values) + 0.1 * span, 1.08 * max(sizes)
    across = lambda size: LEFT + wide * size / right  # noqa: E731
    down = lambda value: 10 + high * (top - value) / (top - bottom)  # noqa: E731
    shapes = []
    for tick in _log_ticks(bottom, top) if log else _ticks(bottom, top):
        y = down(math.log10(tick) if log else tick)
        shapes.append(f'<line x1="{LEFT}" x2="{LEFT + wide}" y1="{y:.1f}" y2="{y:.1f}" class="grid"/>')
        shapes.append(_text(LEFT - 6, y + 4, f'{tick:.3g}', 'end'))
    for tick in _ticks(0.0, right):
        shapes.append(_text(across(tick), high + 28, told_bytes(tick) if tick else '0', 'middle'))
    places = [(across(size), down(value)) for size, value in zip(sizes, values)]
    line = ' '.join(f'{x:.1f},{y:.1f}' for x, y in places)
    shapes.append(f'<polyline points="{line}" class="curve"/>')
    for (x, y), (*_, told) in zip(places, points):
        shapes.append(f'<g><title>{escape(told)}</title><circle cx="{x:.1f}" cy="{y:.1f}" r="5" class="dot"/></g>')
        shapes.append(_text(x + 8, y + (-8 if log else 18), told.partition(':')[0], 'start'))
    shapes.append(_text(LEFT + wide / 2, high + 48, 'size of the file', 'middle'))
    shapes.append(_upright(high / 2 + 10, label))
    return _svg(LEFT + wide + 40, high + 56, shapes, f'{label} over the size of the file')


def told_bytes(count: float) -> str:
    """Bytes with a unit of a thousand.

    >>> told_bytes(1_234_567), told_bytes(12_345), told_bytes(12)
    ('1.23 MB', '12 kB', '12 bytes')
    """
    for unit, size, digits in (('GB', 1e9, 2), ('MB', 1e6, 2), ('kB', 1e3, 0)):
        if count >= size:
            return f'{count / size:.{digits}f} {unit}'
    return f'{count:.0f} bytes'


def _bits_axis(highest: float) -> str:
    """Lines at round numbers of bits."""
    lines = []
    for tick in _ticks(0.0, highest):
        y = BASE - HEIGHT * tick / highest
        lines.append(f'<line x1="{LEFT}" x2="{LEFT + WIDTH}" y1="{y:.1f}" y2="{y:.1f}" class="grid"/>')
        lines.append(_text(LEFT - 6, y + 4, f'{tick:g}', 'end'))
    return ''.join([*lines, _upright(BASE - HEIGHT / 2, 'bits per weight'), _upright(BASE + 46, 'distortion')])


def _elements_axis(elements: int, low: float) -> str:
    unit, name = (1e6, 'million weights') if elements >= 2e6 else (1e3, 'thousand weights')
    if elements < 2e3:
        unit, name = 1.0, 'weights'
    marks = [
        _text(LEFT + WIDTH * tick * unit / elements, low + 18, f'{tick:g}', 'middle')
        for tick in _ticks(0.0, elements / unit)
    ]
    return ''.join([*marks, _text(LEFT + WIDTH / 2, low + 38, f'{name}, in the order of the network', 'middle')])


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers from the one to the other.

    >>> _ticks(0.0, 4.3)
    [0.0, 1.0, 2.0, 3.0, 4.0]
    """
    rough = (high - low) / TICKS
    size = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * size for factor in (1, 2, 5, 10) if factor * size >= rough * 0.999)
    return [number * step for number in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times the powers of ten between those of the two exponents."""
    powers = range(math.floor(low), math.ceil(high) + 1)
    return [f * 10.0**p for p in powers for f in (1, 2, 5) if low <= math.log10(f * 10.0**p) <= high]


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" class="label">{escape(text)}</text>'


def _upright(y: float, text: str) -> str:
    turned = f'transform="rotate(-90 14 {y:.0f})" text-anchor="middle" class="label"'
    return f'<text x="14" y="{y:.0f}" {turned}>{escape(text)}</text>'


def _svg(width: float, height: float, shapes: Sequence[str], told: str) -> str:
    size = f'viewBox="0 0 {width:g} {height:g}" width="{width:g}" height="{height:g}"'
    return f'<div class="wide"><svg {size} role="img" aria-label="{escape(told)}">{"".join(shapes)}</svg></div>'
