"""`mmriem inspect`: what a `.riem` file holds, read by the core alone, without a model."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmriem.core.file import reading
from mmriem.core.file.archive import Archive
from mmriem.core.file.frame import FORMAT_VERSION

EPILOG = """\
examples:
  mmriem inspect out/ckpt.riem
  mmriem inspect out/ckpt.riem --verify                # decode every weight and compare its hash
  mmriem inspect out/ckpt.riem --json | jq .weights[0]
"""


def parser(prog: str | None = None) -> argparse.ArgumentParser:
    """What the command line may hold."""
    found = argparse.ArgumentParser(
        prog,
        description='Say what a .riem file holds. The hashes of all stored bytes are checked.',
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    found.add_argument('file', help='a .riem file')
    found.add_argument('--verify', action='store_true', help='also decode every weight and check its hash')
    found.add_argument('--json', action='store_true', help='print one JSON object, with the hashes of the weights')
    return found


def command(args: argparse.Namespace) -> None:
    """Print what the command line asks for."""
    archive = reading.read(args.file)
    if args.verify:
        archive.verify()
    told = describe(archive, Path(args.file).stat().st_size)
    if args.json:
        print(json.dumps(told, indent=1))
        return
    print(text(args.file, told))
    if args.verify:
        print('\nevery weight decodes to the values that were compressed')


def describe(archive: Archive, size: int) -> dict[str, Any]:
    """What an archive holds, as JSON can tell it.

    Args:
        archive: the file.
        size: its bytes.
    """
    weights = []
    for record in archive.weights:
        elements, bits = math.prod(record.view.shape), record.encoded.payload_bits()
        weights.append(
            {
                'name': record.view.name,
                'aliases': list(record.view.aliases),
                'shape': list(record.view.shape),
                'representation': record.encoded.name,
                'settings': record.encoded.settings_json(),
                'bytes': bits // 8,
                'bits_per_weight': bits / elements,
                'sha256': record.decoded_sha256.hex(),
            }
        )
    dense = [
        {'name': record.layout.name, 'shape': list(record.layout.shape), 'storage': record.layout.storage}
        for record in archive.dense
    ]
    return {
        'format': FORMAT_VERSION,
        'bytes': size,
        'producer': archive.producer,
        'source': {'name': archive.source.name, 'sha256': archive.source.sha256},
        'settings': dict(archive.settings),
        'dataset_meta': dict(archive.dataset_meta),
        'weights': weights,
        'dense': dense,
        'derived': [{'name': record.name, 'shape': list(record.shape)} for record in archive.derived],
    }


def text(path: str, told: dict[str, Any]) -> str:
    """The same for people."""
    weights, dense = told['weights'], told['dense']
    elements = sum(math.prod(weight['shape']) for weight in weights)
    streams = sum(weight['bytes'] for weight in weights)
    classes = told['dataset_meta'].get('classes') or []
    lines = [
        f'{path}: {told["bytes"]:,} bytes, format {told["format"]}, written by mmriem {told["producer"]}',
        f'made from {told["source"]["name"]} (SHA-256 {told["source"]["sha256"]})',
        f'classes: {len(classes)}, {_listed(classes)}' if classes else 'classes: not told',
        'settings: ' + ', '.join(f'{key} {_brief(value)}' for key, value in told['settings'].items()),
        '',
        f'{len(weights)} weights of {elements:,} elements in {streams:,} bytes:',
        *_table(weights),
        '',
        f'{len(dense)} norms, biases and small tensors, {told["bytes"] - streams:,} bytes with all records',
        f'{len(told["derived"])} tensors made anew, in no bytes',
    ]
    return '\n'.join(_printable(line) for line in lines)


def _table(weights: Sequence[dict[str, Any]]) -> list[str]:
    head = ('weight', 'shape', 'representation', 'bits/weight', 'bytes', 'SHA-256 of the decoded weight')
    rows = [
        (
            weight['name'],
            'x'.join(map(str, weight['shape'])),
            weight['representation'],
            f'{weight["bits_per_weight"]:.2f}',
            f'{weight["bytes"]:,}',
            weight['sha256'][:16],
        )
        for weight in weights
    ]
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    right = (3, 4)
    return [
        '  ' + '  '.join(f'{cell:{">" if at in right else "<"}{widths[at]}}' for at, cell in enumerate(row)).rstrip()
        for row in (head, *rows)
    ]


def _listed(names: Sequence[Any], shown: int = 8) -> str:
    more = f' and {len(names) - shown} more' if len(names) > shown else ''
    return ', '.join(str(name) for name in names[:shown]) + more


def _brief(value: Any) -> str:
    return json.dumps(value) if isinstance(value, (dict, list)) else str(value)


def _printable(line: str) -> str:
    """Names come from the file: what would steer a terminal is shown by its number."""
    return ''.join(char if char.isprintable() else f'\\x{ord(char):02x}' for char in line)
