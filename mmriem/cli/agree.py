"""`mmriem agree`: how far a compressed detector or classifier agrees with the original one, without labels."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from mmriem.core.atomic import write_whole
from mmriem.core.errors import RiemError
from mmriem.engine.agreement import SCORE, SIZES, Reference, in_words
from mmriem.engine.config import read_config
from mmriem.engine.detector import init_detector
from mmriem.engine.expectation import expected_by_agreement
from mmriem.engine.judge import IMAGES
from mmriem.engine.probe import build_probe
from mmriem.engine.terminal import plain_console
from mmriem.engine.worst_images import COUNT, worst_images, write_worst

from .compress import check_device, synthesis_steps

SEED = 1
"""Of procedural images: others than those that compression uses, whose seed is 0 by default."""
DESCRIPTION = """\
Say how far a compressed detector or classifier agrees with the original one. No labels are needed.

Both run on images, and what the original finds is the truth: average precision (AP) of the compressed one against it,
by class and by size, objects that it misses, new ones, changes of scores and boxes; of a classifier how often it says
the same class. Without --images the images are procedural: docs/agreement.md says how far to trust these."""
EPILOG = """\
examples:
  mmriem agree cfg.py ckpt.pth out/ckpt.riem --images photos/
  mmriem agree cfg.py ckpt.pth out/ckpt.riem           # on procedural images
  mmriem agree cfg.py ckpt.pth out/ckpt.riem --images photos/ --score 0.5 --image-count 200 --json
"""


def parser(prog: str | None = None) -> argparse.ArgumentParser:
    """What the command line may hold."""
    found = argparse.ArgumentParser(
        prog, description=DESCRIPTION, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    found.add_argument('config', help='of the original: a config file, or mmdet::FOLDER/NAME.py')
    found.add_argument('original', help='its .pth file')
    found.add_argument('compressed', help='a .riem file (or another .pth file of the same config)')
    images = found.add_argument_group('images')
    images.add_argument(
        '--images',
        metavar='DIR',
        help='a folder with images like those that the detector will see; not those of training',
    )
    images.add_argument('--image-count', type=int, default=0, help=f'how many (default: up to {IMAGES})')
    images.add_argument(
        '--synthesis',
        type=synthesis_steps,
        default=0,
        metavar='STEPS',
        help='of procedural images: as of mmriem compress',
    )
    images.add_argument('--seed', type=int, default=SEED, help=f'of procedural images (default: {SEED})')
    what = found.add_argument_group('what is compared')
    what.add_argument(
        '--score', type=float, default=SCORE, help=f'least score of what the original finds (default: {SCORE:g})'
    )
    files = found.add_argument_group('files')
    files.add_argument(
        '--out', type=Path, metavar='DIR', help='folder to write to (default: COMPRESSED-agreement beside it)'
    )
    files.add_argument('--worst', type=int, default=COUNT, help=f'images to draw, the worst ones (default: {COUNT})')
    files.add_argument('--force', action='store_true', help='replace the files of that folder')
    files.add_argument('--json', action='store_true', help='print one JSON object instead of tables')
    found.add_argument('--device', default='cpu', help='where both run (default: cpu)')
    found.add_argument(
        '--trust-checkpoint', action='store_true', help='read .pth files without protection: code in them is run'
    )
    return found


def command(args: argparse.Namespace) -> None:
    """Print and write what the command line asks for."""
    compressed = Path(args.compressed)
    out = args.out or compressed.with_name(f'{compressed.stem}-agreement')
    _require_free(out, force=args.force)
    os.environ.setdefault('LOCAL_RANK', '0')
    device = check_device(args.device)
    config = read_config(args.config)
    models = [
        init_detector(config, path, device=device, trust=args.trust_checkpoint)
        for path in (args.original, args.compressed)
    ]
    count = args.image_count or IMAGES
    probe = build_probe(config, models[0], count, args.seed, args.images, synthesis=args.synthesis)
    probe.synthesise(models[0], device=device)
    agreement = Reference(models[0], probe, args.score).agree(models[1])
    if agreement.figures.get('objects') == 0:
        raise RiemError(
            f'{in_words(agreement.figures)}: expected objects; give images that have some with --images, or a lower '
            'score with --score'
        )
    pictures = worst_images(agreement, models[0], probe, args.worst)
    names = [probe.name(number) for number in range(probe.images)]
    told = {'original': args.original, 'compressed': args.compressed, **agreement.figures, 'names': names}
    out.mkdir(parents=True, exist_ok=True)
    write_whole(out / 'agreement.json', json.dumps(told, indent=1) + '\n')
    drawn = write_worst(pictures, out)
    if args.json:
        print(json.dumps(told, indent=1))
        return
    console = plain_console(120)
    for sentence in (in_words(agreement.figures), *expected_by_agreement(agreement.figures)):
        console.print(f'{sentence[:1].upper()}{sentence[1:]}.', soft_wrap=True)
    for table in tables(agreement.figures):
        console.print(table)
    console.print(f'written: {out / "agreement.json"}', soft_wrap=True)
    if drawn:
        console.print(
            f'look at: the {len(drawn)} images with the least agreement, {drawn[0]} and so on', soft_wrap=True
        )


def tables(figures: Mapping[str, Any]) -> Iterator[Table]:
    """Average precision by size and by class, of boxes and of masks; nothing for a classifier."""
    if figures['kind'] != 'detections':
        return
    for title, its in (('boxes', figures), ('masks', figures.get('masks'))):
        if its is None:
            continue
        table = Table(title=f'{title}: against what the original finds', title_justify='left')
        for heading in ('', 'objects', 'AP', 'AP50'):
            table.add_column(heading, justify='right' if heading else 'left')
        table.add_row('all', f'{figures["objects"]:,}', *_percent(its['AP'], its['AP50']))
        for size in SIZES:
            table.add_row(f'{size} objects', '', *_percent(its['by_size'][size]), '')
        for row in sorted(its['by_class'], key=lambda row: row['AP']):
            table.add_row(row['class'], f'{row["objects"]:,}', *_percent(row['AP'], row['AP50']))
        yield table


def _percent(*values: float | None) -> Sequence[str]:
    return ['-' if value is None else f'{100 * value:.1f}' for value in values]


def _require_free(out: Path, *, force: bool) -> None:
    if out.exists() and not out.is_dir():
        raise RiemError(f'{out}: expected a folder to write to, found a file; choose another with --out')
    if out.is_dir() and any(out.iterdir()) and not force:
        raise RiemError(f'{out}: expected an empty folder or none, found files; pass --force to replace them')
