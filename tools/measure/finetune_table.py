"""What fine-tuning gives back of the mAP that compression has cost: one row for each run of a list, as Markdown.

    python tools/measure/finetune_table.py configs/riem/finetune_table.py [--out DIR] [--data-root DIR] [--only N ...]

A run compresses a detector, trains the states of the file, writes them to a file again, and evaluates the original and
both files with the stock config. What is there already in the folder is not done again.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.runner import Runner

from mmriem.core.errors import RiemError
from mmriem.core.pipeline.settings import Settings
from mmriem.engine.command_line import run
from mmriem.engine.compression import compress_detector
from mmriem.engine.config import load_strictly, read_config, with_data_root
from mmriem.engine.evaluation import evaluate
from mmriem.engine.outputs import Outputs
from mmriem.engine.scheme import read_pth_safely

HEADINGS = ('detector', 'bits', 'trained', 'epochs', 'bytes', 'mAP', 'AP50', 'lost', 'recovered')


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description='Recover mAP by fine-tuning compressed detectors')
    parser.add_argument('runs', help='a config with a list `runs`')
    parser.add_argument('--out', default='work_dirs/finetune', help='folder for files and the table')
    parser.add_argument('--data-root', help='where the data is that the configs look for in ../shared/data')
    parser.add_argument('--only', nargs='+', metavar='NAME', help='names of runs')
    return parser.parse_args()


class Finetuning:
    """One run, in a folder of its own; the original and the compressed file are shared with others.

    Args:
        name: of the run.
        config: the stock config.
        checkpoint: its weights.
        bits: of the compressed file for each weight.
        riem: of the live model, see `mmriem.models.RieMModule`.
        options: overrides of the stock config for training.
        folder: where files go.
        root: see `with_data_root`.
    """

    def __init__(
        self,
        *,
        name: str,
        config: str,
        checkpoint: str,
        bits: float,
        riem: dict[str, Any],
        options: dict[str, Any],
        folder: Path,
        root: str | None,
    ) -> None:
        self.name, self.bits, self.riem = name, bits, riem
        self.stock = Config(with_data_root(read_config(with_data_root(config, root)).to_dict(), root))
        self.detector = Path(config).stem
        self.checkpoint = with_data_root(checkpoint, root)
        self.work_dir = folder / name
        self.shared = folder / f'{self.detector}_{bits:g}bits.riem'
        self.live = Config(self.stock.to_dict())
        self.live.model.update(type=f'mmriem.RieM{self.live.model.type}', riem=riem)
        self.live.merge_from_dict(options)
        self.live.merge_from_dict(
            dict(load_from=str(self.shared), work_dir=str(self.work_dir), experiment_name=f'{name}_{time.time_ns()}')
        )
        self.epochs = self.live.train_cfg.max_epochs
        load_strictly(self.live)

    def row(self) -> dict[str, Any]:
        """Run what is yet to be run; the figures of the row."""
        self.work_dir.mkdir(parents=True, exist_ok=True)
        stock, live = self.work_dir / 'stock.py', self.work_dir / 'live.py'
        self.stock.dump(stock), self.live.dump(live)
        if not self.shared.exists():
            compress_detector(
                str(stock),
                self.checkpoint,
                Outputs(self.shared),
                Settings.of(bits=self.bits, trellis=False),
                force=True,
            )
        tuned = self.work_dir / 'tuned.riem'
        if not tuned.exists():
            read_pth_safely()
            Runner.from_cfg(self.live).train()
            last = self.work_dir / f'epoch_{self.epochs}.pth'
            compress_detector(str(live), str(last), Outputs(tuned), Settings.of(), force=True)
        original = self._metrics(self.checkpoint, self.shared.with_name(f'{self.detector}.metrics.json'))
        before = self._metrics(self.shared, self.shared.with_suffix('.metrics.json'))
        after = self._metrics(tuned, self.work_dir / 'tuned.metrics.json')
        return dict(
            name=self.name,
            detector=self.detector,
            bits=self.bits,
            integers=self.riem.get('integers', 'frozen'),
            epochs=self.epochs,
            bytes=(self.shared.stat().st_size, tuned.stat().st_size),
            mAP=[100 * metrics['coco/bbox_mAP'] for metrics in (original, before, after)],
            AP50=[100 * metrics['coco/bbox_mAP_50'] for metrics in (original, before, after)],
        )

    def _metrics(self, checkpoint: str | os.PathLike, known: Path) -> dict[str, float]:
        if not known.exists():
            known.write_text(json.dumps(evaluate(self.stock, checkpoint, self.work_dir / 'test')))
        return json.loads(known.read_text())


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as Markdown.

    >>> row = dict(detector='d', bits=1.2, integers='frozen', epochs=2, bytes=(2000, 2100))
    >>> print(table([dict(row, mAP=(50.0, 46.0, 49.0), AP50=(80.0, 70.0, 79.0))]).splitlines()[2])
    | d | 1.2 | steps | 2 | 2,000 to 2,100 | 50.0, 46.0, 49.0 | 80.0, 70.0, 79.0 | 4.0 | 75 % |
    """
    lines = [f'| {" | ".join(HEADINGS)} |', '|---' * len(HEADINGS) + '|']
    for row in rows:
        original, before, after = row['mAP']
        lost = original - before
        recovered = f'{100 * (after - before) / lost:.0f} %' if lost > 0 else '-'
        cells = (
            row['detector'],
            f'{row["bits"]:g}',
            'steps' if row['integers'] == 'frozen' else 'integers',
            f'{row["epochs"]}',
            ' to '.join(f'{size:,}' for size in row['bytes']),
            ', '.join(f'{value:.1f}' for value in row['mAP']),
            ', '.join(f'{value:.1f}' for value in row['AP50']),
            f'{lost:.1f}',
            recovered,
        )
        lines.append(f'| {" | ".join(cells)} |')
    return '\n'.join(lines) + '\n'


def main() -> None:
    """Run the list that the command line names."""
    args = parse_args()
    listed = read_config(args.runs).runs
    names = [entry.name for entry in listed]
    if unknown := [name for name in args.only or () if name not in names]:
        raise RiemError(f'--only: expected names among {", ".join(names)}, found {", ".join(unknown)}')
    folder = Path(args.out)
    folder.mkdir(parents=True, exist_ok=True)
    rows = folder / 'rows.json'
    for entry in listed:
        if args.only and entry.name not in args.only:
            continue
        row = Finetuning(
            **entry.to_dict() if hasattr(entry, 'to_dict') else entry, folder=folder, root=args.data_root
        ).row()
        found = json.loads(rows.read_text()) if rows.exists() else {}
        rows.write_text(json.dumps({**found, row['name']: row}, indent=1))
        print(table([row]), flush=True)
    found = json.loads(rows.read_text())
    (folder / 'table.md').write_text(table([found[name] for name in names if name in found]))


if __name__ == '__main__':
    run(main)
