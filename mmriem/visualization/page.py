"""The report of a compression as one page of HTML: nothing from elsewhere, light and dark, for screens and paper.

Its one script searches the weights; without it everything else is there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from html import escape
from typing import Any

import numpy as np

from .charts import bytes_chart, curve_chart, told_bytes
from .curves import COLOURS
from .sheet import MOST, picture_tag, sheet_tag

__all__ = ['ladder_page', 'report_page']

_STYLE = """
:root { color-scheme: light dark; --ink: #1f2328; --soft: #59636e; --paper: #fff; --stripe: #f4f5f7; --line: #d1d9e0; --accent: #0072b2; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e8eb; --soft: #9aa4ae; --paper: #16191d; --stripe: #20252b; --line: #3a424b; --accent: #56b4e9; } }
@media print { :root { color-scheme: light; --ink: #000; --soft: #333; --paper: #fff; --stripe: #f4f5f7; --line: #bbb; } .search { display: none; } h2 { break-after: avoid; } tr, svg, img { break-inside: avoid; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 1080px; margin: 1.5em auto; padding: 0 1em; }
h1 { font-size: 1.5em; margin-bottom: 0; overflow-wrap: anywhere; } h2 { font-size: 1.15em; margin: 2em 0 .4em; border-bottom: 1px solid var(--line); padding-bottom: .2em; }
.lead { color: var(--soft); margin-top: .2em; overflow-wrap: anywhere; } .figures { display: flex; flex-wrap: wrap; gap: 1em 2.5em; margin: 1.2em 0; }
.figures b { display: block; font-size: 1.6em; font-weight: 600; } .figures span { color: var(--soft); }
.verdict { border-left: 6px solid var(--tone); padding: .5em 1em; background: var(--stripe); margin: 1em 0; } .verdict b { font-size: 1.3em; color: var(--ink); display: block; } .verdict b::first-letter { text-transform: uppercase; }
.wide { overflow-x: auto; } .wide svg { max-width: 100%; min-width: 620px; height: auto; font: 12px system-ui, sans-serif; display: block; }
.label { fill: var(--soft); } .grid { stroke: var(--line); } .bar { stroke: var(--paper); stroke-width: .4; } .curve { fill: none; stroke: var(--accent); stroke-width: 2; } .dot { fill: var(--accent); }
g.off { opacity: .12; } tr.off { display: none; } .search { font: inherit; padding: .3em .6em; width: min(26em, 100%); box-sizing: border-box; color: var(--ink); background: var(--paper); border: 1px solid var(--line); border-radius: 4px; margin: .3em 0; }
table { border-collapse: collapse; font-size: 13px; min-width: 50%; } td, th { padding: 2px 8px; text-align: right; white-space: nowrap; } th { border-bottom: 1px solid var(--soft); }
tr:nth-child(even) td { background: var(--stripe); } td.long { white-space: normal; overflow-wrap: anywhere; } td:first-child, th:first-child, td.text, th.text { text-align: left; } .best td { font-weight: 600; }
code, pre { background: var(--stripe); font-size: 13px; } code { padding: 1px 4px; overflow-wrap: anywhere; } pre { padding: .7em; overflow-x: auto; white-space: pre-wrap; overflow-wrap: anywhere; }
.key { display: inline-block; width: .8em; height: .8em; margin-right: .3em; } .key + span { margin-right: 1.2em; } img { max-width: 100%; height: auto; }
.pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(420px, 100%), 1fr)); gap: 1em; color: var(--soft); }
.size { display: grid; grid-template-columns: 9em 1fr; gap: .2em .8em; align-items: center; max-width: 760px; } .size i { background: var(--accent); height: 1em; display: inline-block; min-width: 2px; vertical-align: middle; margin-right: .5em; } .size i.other { background: var(--soft); opacity: .6; } .size span { white-space: nowrap; }
"""  # noqa: E501
_SCRIPT = """
document.querySelector('.search').addEventListener('input', event => {
  const words = event.target.value.toLowerCase();
  document.querySelectorAll('.weight').forEach(each => {
    each.classList.toggle('off', !each.textContent.toLowerCase().includes(words));
  });
});
"""
_COLUMNS = ('weight', 'shape', 'representation', 'metric', 'bits/weight', 'bytes', 'SNR dB', 'distortion', 'seconds')
_TEXT = {'weight', 'shape', 'representation', 'metric'}
TONES = {'visually lossless': '#009e73', 'good': '#56b4e9', 'lossy': '#e69f00', 'broken': '#d55e00'}
"""Colour of a verdict; grey for others."""


def report_page(
    report: Mapping[str, Any],
    images: Sequence[np.ndarray] = (),
    worst: Sequence[tuple[str, np.ndarray]] = (),
) -> str:
    """The text of the page.

    Args:
        report: as `core.pipeline.compress` makes it, with `file`, and where they are known `source` (its `config`,
            `checkpoint` and `sha256`), `verdict` (a word), `notes` (sentences on what to expect), `evaluate` (a command
            line), `made` (texts by their names: version, date and so on), `agreement` and `evaluation`.
        images: those that the network was run on, see `contact_sheet`.
        worst: name and picture of images on which both models agree least.
    """
    weights, totals = report['weights'], report['totals']
    parts = list(dict.fromkeys(_part(weight) for weight in weights))
    colours = {part: COLOURS[number % len(COLOURS)] for number, part in enumerate(parts)}
    source = report.get('source', {})
    lead = ' · '.join(escape(str(source[key])) for key in ('config', 'checkpoint') if key in source)
    sections = [
        f'<h1>{escape(report["file"])}</h1>\n<p class="lead">{lead}</p>',
        _verdict(report),
        _figures(report),
        f'<p>Evaluate: <code>{escape(report["evaluate"])}</code></p>' if 'evaluate' in report else '',
        _evaluation(report.get('evaluation')),
        _sizes(totals),
        _agreement(report.get('agreement'), worst),
        f'<h2>Where the bytes went</h2>\n<p>A bar for each weight: as wide as it has elements, as high as it has bits '
        'for each, so its area is its bytes. Below, its share of the predicted distortion of the outputs. Point at a '
        f'bar for its name.</p>\n{_legend(weights, colours)}\n<input class="search" type="search" '
        f'aria-label="search weights" placeholder="search weights, e.g. neck">\n{bytes_chart(weights, colours)}\n'
        f'{_parts(weights, totals, parts)}',
        _dense(weights, report['settings']),
        _remarks(weights, totals.get('tuning')),
        _images(images, report['settings'].get('images', {})),
        f'<h2>Every weight</h2>\n{_table(weights)}',
        f'<h2>How it was made</h2>\n{_made(report.get("made", {}))}<pre>{escape(_settings(report))}</pre>',
        f'<script>{_SCRIPT}</script>',
    ]
    return _page(report['file'], sections)


def ladder_page(title: str, rows: Sequence[Mapping[str, Any]], best: Mapping[str, Any] | None) -> str:
    """The page of a ladder of sizes: which file to take, curves, and a table with the page of each.

    Args:
        title: of the page.
        rows: of the ladder, see `mmriem.engine.ladder`.
        best: the one that is recommended.
    """
    written = [row for row in rows if 'refused' not in row]
    told = 'None of these sizes is good: take more bits.'
    if best is not None:
        told = f'Take {best["file"]}: {best["expected"]}.'
    lead = (
        f'<div class="verdict" style="--tone:{TONES.get((best or {}).get("verdict", ""), "#999")}">{escape(told)}</div>'
    )
    curves = []
    for label, log, value in _curves(written):
        points = [
            (row['bytes'], value(row), f'{row["bits"]:g} {"bit" if row["bits"] == 1 else "bits"}: {row["file"]}')
            for row in written
        ]
        if len(points) > 1 and all(point[1] is not None and (point[1] > 0 or not log) for point in points):
            curves.append(f'<h2>{escape(label)}</h2>\n{curve_chart(points, label, log=log)}')
    return _page(title, [f'<h1>{escape(title)}, several sizes</h1>', lead, _rungs(rows, best), *curves])


def _curves(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, bool, Any]]:
    """Name of a curve, whether it is logarithmic, and its value of a row."""
    found: list[tuple[str, bool, Any]] = []
    if rows and all('metric' in row for row in rows):
        found.append((f'{rows[0]["metric"]["name"]} on the test set', False, lambda row: row['metric']['after']))
    if rows and all('agreement' in row for row in rows):
        found.append(('agreement with the original', False, lambda row: row['agreement']))
    return [*found, ('predicted error of the outputs', True, lambda row: row['predicted_error'])]


def _rungs(rows: Sequence[Mapping[str, Any]], best: Mapping[str, Any] | None) -> str:
    has = {key: any(key in row for row in rows) for key in ('metric', 'agreement')}
    heads = ['bits/weight', 'file', 'size', 'of fp32', 'of fp16', 'predicted error']
    heads += [*(['test set'] if has['metric'] else []), *(['agreement'] if has['agreement'] else []), 'verdict']
    lines = []
    for row in rows:
        if 'refused' in row:
            lines.append(f'<tr><td>{row["bits"]:g}</td><td class=text colspan="{len(heads) - 1}">refused</td></tr>')
            continue
        error, page = row['predicted_error'], row['file'].removesuffix('.riem') + '.html'
        cells = [
            f'<td>{row["bits"]:g}</td><td class=text><a href="{escape(page)}">{escape(row["file"])}</a></td>',
            f'<td>{told_bytes(row["bytes"])}</td>',
            *(f'<td>1/{row[key] / row["bytes"]:.1f}</td>' for key in ('bytes_fp32', 'bytes_fp16')),
            f'<td>{"-" if error is None else f"{error:.3f}"}</td>',
        ]
        if has['metric']:
            cells.append(f'<td>{row["metric"]["after"]:.4g}</td>' if 'metric' in row else '<td>-</td>')
        if has['agreement']:
            cells.append(f'<td>{_percent(row.get("agreement"))}</td>')
        mark = ' (recommended)' if row is best else ''
        cells.append(f'<td class=text>{escape(row["verdict"])}{mark}</td>')
        lines.append(f'<tr{" class=best" if row is best else ""}>{"".join(cells)}</tr>')
    head = ''.join(f'<th{" class=text" if name in ("file", "verdict") else ""}>{name}</th>' for name in heads)
    return f'<div class="wide"><table><tr>{head}</tr>\n{chr(10).join(lines)}</table></div>'


def _page(title: str, sections: Sequence[str]) -> str:
    body = '\n'.join(section for section in sections if section)
    page = (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<title>{escape(title)}</title><style>{_STYLE}</style></head>\n<body>\n{body}\n</body></html>\n'
    )
    return page.encode('utf-8', 'backslashreplace').decode('utf-8')  # names of files may be no Unicode


def _verdict(report: Mapping[str, Any]) -> str:
    """The word, and what to expect."""
    word = report.get('verdict')
    notes = ''.join(f'{escape(note[:1].upper() + note[1:])}. ' for note in report.get('notes', ()))
    if word is None and not notes:
        return ''
    tone, head = TONES.get(str(word), '#999'), '' if word is None else f'<b>{escape(word)}</b>'
    return f'<div class="verdict" style="--tone:{tone}">{head}{notes}</div>'


def _figures(report: Mapping[str, Any]) -> str:
    totals, error = report['totals'], report['totals'].get('predicted_error')
    figures = [
        (told_bytes(totals['bytes']), f'file, of {told_bytes(totals["bytes_fp32"])} in fp32'),
        (f'{totals["bytes_fp32"] / totals["bytes"]:.1f}x', 'smaller than fp32'),
        (f'{totals["bytes_fp32"] / 2 / totals["bytes"]:.1f}x', 'smaller than fp16'),
        (f'{totals["bits_per_weight"]:.2f}', 'bits per weight, everything counted'),
        ('-' if error is None else f'{error:.3f}', 'predicted relative error of the outputs'),
    ]
    if agreement := report.get('agreement'):
        is_class = agreement['kind'] == 'classes'
        value = agreement['top1'] if is_class else agreement['AP']
        figures.append((_percent(value), 'same class as the original' if is_class else 'AP against the original'))
    figures.append((f'{totals["wall_seconds"]:.0f} s', 'to compress'))
    boxes = ''.join(f'<div><b>{big}</b><span>{small}</span></div>' for big, small in figures)
    return f'<div class="figures">{boxes}</div>'


def _evaluation(evaluation: Mapping[str, Any] | None) -> str:
    if not evaluation:
        return ''
    before, after = evaluation['before'], evaluation['after']
    rows = ''.join(
        f'<tr><td>{escape(name)}</td><td>{_number(value)}</td><td>{_number(after.get(name))}</td></tr>\n'
        for name, value in before.items()
        if name != 'seconds' and isinstance(value, (int, float))
    )
    head = '<tr><th>metric</th><th>original</th><th>compressed</th></tr>'
    return f'<h2>On the test set</h2>\n<div class="wide"><table>{head}\n{rows}</table></div>'


def _agreement(agreement: Mapping[str, Any] | None, worst: Sequence[tuple[str, np.ndarray]]) -> str:
    """Sentence, table by size and class, and the images with the least of it."""
    if not agreement:
        return ''
    said = agreement.get('said', '')
    sections = [f'<h2>Agreement with the original</h2>\n<p>{escape(said[:1].upper() + said[1:])}.</p>']
    if agreement['kind'] == 'detections' and agreement['objects']:
        rows = [('all', agreement['objects'], agreement['AP'], agreement['AP50'])]
        rows += [(f'{size} objects', '', value, None) for size, value in agreement['by_size'].items()]
        rows += [(row['class'], row['objects'], row['AP'], row['AP50']) for row in agreement['by_class']]
        cells = ''.join(
            f'<tr><td>{escape(name)}</td><td>{objects}</td><td>{_percent(ap)}</td><td>{_percent(ap50)}</td></tr>\n'
            for name, objects, ap, ap50 in rows
        )
        head = '<tr><th></th><th>objects</th><th>AP</th><th>AP50</th></tr>'
        sections.append(f'<div class="wide"><table>{head}\n{cells}</table></div>')
    if worst:
        sections.append(
            f'<p>The {len(worst)} images with the least agreement, the original on the left: green is what both find, '
            'orange what is missed, pink what is new.</p>'
        )
        shown = (f'<div>{picture_tag(picture, name)}<br>{escape(name)}</div>' for name, picture in worst)
        sections.append(f'<div class="pictures">{"".join(shown)}</div>')
    return '\n'.join(sections)


def _sizes(totals: Mapping[str, Any]) -> str:
    whole = totals['bytes_fp32']
    rows = [('fp32', whole, 'other'), ('fp16', whole / 2, 'other'), ('8 bits', whole / 4, 'other')]
    rows.append(('this file', totals['bytes'], 'own'))
    bars = ''.join(
        f'<span>{name}</span><span><i class="{kind}" style="width:{70 * size / whole:.2f}%"></i>'
        f'{told_bytes(size)}</span>'
        for name, size, kind in rows
    )
    return f'<h2>Size</h2>\n<div class="size">{bars}</div>'


def _legend(weights: Sequence[Mapping[str, Any]], colours: Mapping[str, str]) -> str:
    sizes = {part: sum(weight['bits'] for weight in weights if _part(weight) == part) / 8 for part in colours}
    keys = (
        f'<span class="key" style="background:{colour}"></span><span>{escape(part)}, {told_bytes(sizes[part])}</span>'
        for part, colour in colours.items()
    )
    return f'<p>{"".join(keys)}</p>'


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
    return f'<div class="wide"><table><tr>{"".join(f"<th>{head}</th>" for head in heads)}</tr>\n{cells}</table></div>'


def _dense(weights: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]) -> str:
    """The weights that stay as they are, by the reason why."""
    reasons: dict[str, list[Mapping[str, Any]]] = {}
    for weight in weights:
        if weight['representation'] == 'dense':
            reasons.setdefault(_why_dense(weight, settings), []).append(weight)
    if not reasons:
        return ''
    lines = ''
    for why, its in reasons.items():
        size = told_bytes(sum(weight['bits'] for weight in its) / 8)
        names = ', '.join(f'<code>{escape(weight["name"])}</code>' for weight in its)
        lines += f'<li>{len(its)} {why}, {size}: {names}</li>'
    told = 'Besides norms and biases, whose values are rounded:'
    return f'<h2>What stays dense, and why</h2>\n<p>{told}</p><ul>{lines}</ul>'


def _why_dense(weight: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    if 'states' in settings:
        return 'that have no states in the trained model'
    least = settings.get('min_numel', 0)
    if math.prod(weight['shape']) < least:
        return f'of fewer than {least} elements, too small to gain by it'
    name = weight['name']
    patterns = settings.get('include', ['*'])
    is_out = any(fnmatchcase(name, pattern) for pattern in settings.get('exclude', []))
    if is_out or not any(fnmatchcase(name, pattern) for pattern in patterns):
        return 'left out by --include or --exclude'
    return 'too small to gain by it, or left out'


def _remarks(weights: Sequence[Mapping[str, Any]], tuning: Mapping[str, Any] | None) -> str:
    """What a reader should know: which weights no image reached, how tuning went."""
    fitted = [w for w in weights if w['representation'] != 'dense']
    unseen = [w['name'] for w in fitted if w['metric'] == 'identity']
    lines = []
    if unseen and len(unseen) < len(fitted):
        names = ', '.join(f'<code>{escape(name)}</code>' for name in unseen)
        lines.append(f'<li>No image reached these; they are taken as averagely sensitive: {names}</li>')
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
    lines = ''.join(f'<tr class="weight">{row}</tr>\n' for row in rows)
    return f'<div class="wide"><table><tr>{head}</tr>\n{lines}</table></div>'


def _made(made: Mapping[str, str]) -> str:
    rows = ''.join(
        f'<tr><td>{escape(key)}</td><td class="text long">{escape(value)}</td></tr>\n' for key, value in made.items()
    )
    return f'<div class="wide"><table>{rows}</table></div>' if rows else ''


def _settings(report: Mapping[str, Any]) -> str:
    source = {f'source {key}': value for key, value in report.get('source', {}).items()}
    return '\n'.join(f'{key}: {value}' for key, value in {**report['settings'], **source}.items())


def _part(weight: Mapping[str, Any]) -> str:
    return weight['name'].split('.')[0]


def _percent(value: float | None) -> str:
    return '-' if value is None else f'{100 * value:.1f} %'


def _number(value: Any) -> str:
    """Of a metric; COCO's has -1 where there is no object."""
    return f'{value:.4g}' if isinstance(value, (int, float)) and value >= 0 else '-'
