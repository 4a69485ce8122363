"""The report of a compression as one page of HTML: no script, nothing from elsewhere, pictures as inline SVG."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from .curves import COLOURS
from .sheet import MOST, sheet_tag

__all__ = ['report_page']

WIDTH, HEIGHT, LEFT, GAP = 1040, 220, 48, 6
"""Pixels of the picture of all weights: width and height of its bars, width of the axis, the gap below the bars."""
DISTORTION_HEIGHT = 80
"""Pixels of the greatest distortion in the picture of all weights."""

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 1100px; margin: 2em auto; padding: 0 1em; }
h1 { font-size: 1.5em; margin-bottom: 0; } h2 { font-size: 1.15em; margin-top: 2em; }
.lead { color: #555; margin-top: .2em; overflow-wrap: anywhere; } .figures { display: flex; flex-wrap: wrap; gap: 1em 2.5em; margin: 1.5em 0; }
.figures b { display: block; font-size: 1.6em; font-weight: 600; } .figures span { color: #555; }
table { border-collapse: collapse; font-size: 13px; width: 100%; } td, th { padding: 2px 8px; text-align: right; }
th { border-bottom: 1px solid #888; position: sticky; top: 0; background: #fff; } tr:nth-child(even) td { background: #f5f5f5; }
td:first-child, th:first-child, td.text, th.text { text-align: left; } code { background: #f0f0f0; padding: 1px 4px; }
.key { display: inline-block; width: .8em; height: .8em; margin-right: .3em; } .key + span { margin-right: 1.2em; }
svg { max-width: 100%; height: auto; font: 12px system-ui, sans-serif; } pre { background: #f0f0f0; padding: .7em; overflow-x: auto; }
"""  # noqa: E501
_COLUMNS = ('weight', 'shape', 'representation', 'metric', 'bits/weight', 'bytes', 'SNR dB', 'distortion', 'seconds')
_TEXT = {'weight', 'shape', 'representation', 'metric'}


def report_page(report: Mapping[str, Any], images: Sequence[np.ndarray] = ()) -> str:
    """The text of the page.

    Args:
        images: those that the network was run on, see `contact_sheet`.
        report: as `core.pipeline.compress` makes it, with `file`, and where they are known `source` (its `config`,
            `checkpoint` and `sha256`), `notes` (sentences on what to expect) and `evaluate`, a command line.
    """
    weights, totals = report['weights'], report['totals']
    parts = list(dict.fromkeys(_part(weight) for weight in weights))
    colours = {part: COLOURS[number % len(COLOURS)] for number, part in enumerate(parts)}
    source = report.get('source', {})
    lead = ' · '.join(escape(str(source[key])) for key in ('config', 'checkpoint') if key in source)
    sections = [
        f'<h1>{escape(report["file"])}</h1>\n<p class="lead">{lead}</p>',
        _figures(totals),
        ''.join(f'<p>{escape(note[:1].upper() + note[1:])}.</p>\n' for note in report.get('notes', ())),
        '<h2>Where the bytes are</h2>\n<p>A bar for each weight: as wide as it has elements, as high as it has bits '
        'for each, so its area is its bytes. Below, its share of the predicted distortion.</p>\n'
        f'{_legend(colours)}\n{_picture(weights, colours)}\n{_parts(weights, totals, parts)}',
        _remarks(weights, totals.get('tuning'), 'states' in report['settings']),
        _images(images, report['settings'].get('images', {})),
        f'<h2>Every weight</h2>\n{_table(weights)}',
        f'<h2>Settings</h2>\n<pre>{escape(_settings(report))}</pre>',
    ]
    if 'evaluate' in report:
        sections.insert(3, f'<p>Evaluate: <code>{escape(report["evaluate"])}</code></p>')
    body = '\n'.join(section for section in sections if section)
    page = (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(report["file"])}</title>'
        f'<style>{_STYLE}</style></head>\n<body>\n{body}\n</body></html>\n'
    )
    return page.encode('utf-8', 'backslashreplace').decode('utf-8')  # names of files may be no Unicode


def _figures(totals: Mapping[str, Any]) -> str:
    error = totals.get('predicted_error')
    figures = [
        (_bytes(totals['bytes']), f'file, of {_bytes(totals["bytes_fp32"])} in fp32'),
        (f'{totals["bytes_fp32"] / totals["bytes"]:.1f}x', 'smaller than fp32'),
        (f'{totals["bits_per_weight"]:.2f}', 'bits per weight, everything counted'),
        ('-' if error is None else f'{error:.3f}', 'predicted relative error of the outputs'),
        (f'{totals["wall_seconds"]:.0f} s', 'to compress'),
    ]
    boxes = ''.join(f'<div><b>{big}</b><span>{small}</span></div>' for big, small in figures)
    return f'<div class="figures">{boxes}</div>'


def _legend(colours: Mapping[str, str]) -> str:
    keys = (
        f'<span class="key" style="background:{colour}"></span><span>{escape(part)}</span>'
        for part, colour in colours.items()
    )
    return f'<p>{"".join(keys)}</p>'


def _picture(weights: Sequence[Mapping[str, Any]], colours: Mapping[str, str]) -> str:
    """Bars of bits per weight over elements, and bars of distortion under them."""
    elements = sum(math.prod(weight['shape']) for weight in weights)
    highest = max(weight['bits_per_weight'] for weight in weights) or 1.0
    distortion = sum(weight['distortion'] or 0.0 for weight in weights)
    tallest = max((weight['distortion'] or 0.0 for weight in weights), default=0.0)
    base = HEIGHT + 10
    shapes, x = [_axis(highest, base)], float(LEFT)
    for weight in weights:
        width = WIDTH * math.prod(weight['shape']) / elements
        height = HEIGHT * weight['bits_per_weight'] / highest
        told = f'{weight["name"]}: {weight["bits_per_weight"]:.2f} bits, {_bytes(weight["bits"] / 8)}'
        if weight['distortion'] and distortion:
            told += f', {100 * weight["distortion"] / distortion:.1f} % of the distortion'
        fill = f'fill="{colours[_part(weight)]}" stroke="#fff" stroke-width=".4"'
        bars = f'<rect x="{x:.2f}" y="{base - height:.2f}" width="{width:.2f}" height="{height:.2f}" {fill}/>'
        if weight['distortion'] and tallest:
            depth = DISTORTION_HEIGHT * weight['distortion'] / tallest
            bars += f'<rect x="{x:.2f}" y="{base + GAP}" width="{max(width, 1):.2f}" height="{depth:.2f}" {fill}/>'
        shapes.append(f'<g><title>{escape(told)}</title>{bars}</g>')
        x += width
    low = base + GAP + DISTORTION_HEIGHT
    shapes.append(f'<text x="0" y="{base + GAP + 12}" fill="#555">distortion</text>')
    size = f'viewBox="0 0 {LEFT + WIDTH} {low + 4}" width="{LEFT + WIDTH}" height="{low + 4}"'
    return f'<svg {size} role="img" aria-label="bits and distortion of each weight">{"".join(shapes)}</svg>'


def _axis(highest: float, base: int) -> str:
    """Ticks at round numbers of bits."""
    step = next(step for step in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100) if highest / step <= 6 or step == 100)
    lines = []
    for number in range(int(highest / step) + 1):
        y = base - HEIGHT * number * step / highest
        lines.append(f'<line x1="{LEFT}" x2="{LEFT + WIDTH}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>')
        lines.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end" fill="#555">{number * step:g}</text>')
    return ''.join(lines)


def _parts(weights: Sequence[Mapping[str, Any]], totals: Mapping[str, Any], parts: Sequence[str]) -> str:
    rows: list[tuple[str, int | str, str, str, float]] = []
    for part in parts:
        own = [weight for weight in weights if _part(weight) == part]
        elements, bits = sum(math.prod(weight['shape']) for weight in own), sum(weight['bits'] for weight in own)
        rows.append((part, len(own), f'{elements:,}', f'{bits / elements:.2f}', bits / 8))
    others = totals['bytes'] - sum(row[4] for row in rows)
    rows.append(('norms, biases, records', '', '', '', others))
    cells = ''.join(
        '<tr>'
        + ''.join(f'<td>{escape(str(cell))}</td>' for cell in row[:4])
        + f'<td>{row[4]:,.0f}</td><td>{100 * row[4] / totals["bytes"]:.1f} %</td></tr>\n'
        for row in rows
    )
    heads = ('part', 'weights', 'elements', 'bits/weight', 'bytes', 'share')
    return f'<table><tr>{"".join(f"<th>{head}</th>" for head in heads)}</tr>\n{cells}</table>'


def _remarks(weights: Sequence[Mapping[str, Any]], tuning: Mapping[str, Any] | None, has_states: bool) -> str:
    """What a reader should know: which weights no image reached, which stay dense, how tuning went."""
    unseen = [w['name'] for w in weights if w['metric'] == 'identity' and w['representation'] != 'dense']
    dense = [w['name'] for w in weights if w['representation'] == 'dense']
    remarks = []
    if unseen and len(unseen) < len(weights) - len(dense):
        remarks.append(('No image reached these; they are taken as averagely sensitive:', unseen))
    if dense:
        why = 'having no states' if has_states else 'being too small to gain by it, or left out'
        remarks.append((f'These stay as they are, {why}:', dense))
    lines = [
        f'<li>{told} {", ".join(f"<code>{escape(name)}</code>" for name in names)}</li>' for told, names in remarks
    ]
    if tuning is not None:
        told = 'so they stay trained' if tuning['kept'] else 'so they are what they were before'
        lines.append(
            '<li>Norms and biases were trained against the original network: the error on images '
            f'that were held out went from {tuning["before"]:.4g} to {tuning["after"]:.4g}, {told}.</li>'
        )
    return f'<h2>Remarks</h2>\n<ul>{"".join(lines)}</ul>' if lines else ''


def _images(images: Sequence[np.ndarray], said: Mapping[str, Any]) -> str:
    """What they are, and some of them."""
    if not len(images):
        return ''
    number, of = min(len(images), MOST), said.get('count', len(images))
    told = {
        'procedural': 'Drawn from a random generator.',
        'synthetic': 'Made from nothing but the network and a seed: procedural images, optimised in '
        f'{said.get("steps")} steps until the norms of the network see what they saw in training.',
        'folder': 'Of the folder that was given.',
    }
    text = f'{number} of the {of} images that the network was run on. {told.get(said.get("kind", ""), "")}'
    return f'<h2>Images</h2>\n<p>{escape(text)}</p>\n{sheet_tag(images)}'


def _table(weights: Sequence[Mapping[str, Any]]) -> str:
    total = sum(weight['distortion'] or 0.0 for weight in weights)
    head = ''.join(f'<th{" class=text" if name in _TEXT else ""}>{name}</th>' for name in _COLUMNS)
    rows = []
    for weight in weights:
        share = f'{100 * weight["distortion"] / total:.1f} %' if weight['distortion'] and total else '-'
        cells = (
            weight['name'],
            ' x '.join(map(str, weight['shape'])),
            weight['representation'],
            weight['metric'],
            f'{weight["bits_per_weight"]:.2f}',
            f'{weight["bits"] / 8:,.0f}',
            '-' if weight['snr_db'] is None else f'{weight["snr_db"]:.1f}',
            share,
            f'{weight["seconds"]:.1f}',
        )
        columns = zip(_COLUMNS, cells)
        rows.append(
            ''.join(f'<td{" class=text" if name in _TEXT else ""}>{escape(cell)}</td>' for name, cell in columns)
        )
    return f'<table><tr>{head}</tr>\n{"".join(f"<tr>{row}</tr>{chr(10)}" for row in rows)}</table>'


def _settings(report: Mapping[str, Any]) -> str:
    source = {f'source {key}': value for key, value in report.get('source', {}).items()}
    return '\n'.join(f'{key}: {value}' for key, value in {**report['settings'], **source}.items())


def _part(weight: Mapping[str, Any]) -> str:
    return weight['name'].partition('.')[0]


def _bytes(count: float) -> str:
    """A number of bytes for people.

    >>> _bytes(1_635_673), _bytes(453_078), _bytes(12)
    ('1.64 MB', '453 kB', '12 bytes')
    """
    for unit, size, digits in (('GB', 1e9, 2), ('MB', 1e6, 2), ('kB', 1e3, 0)):
        if count >= size:
            return f'{count / size:.{digits}f} {unit}'
    return f'{count:.0f} bytes'
