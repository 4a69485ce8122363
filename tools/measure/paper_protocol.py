"""The paper's protocol: ten seeds of the sigmoid representation, the best three by a development split, and a baseline.

    python tools/measure/paper_protocol.py CONFIG CHECKPOINT --baseline svd --baseline-bits 4 [--seeds 10 --keep 3]

The files are no larger than that of the baseline, and making their weights takes no more FLOPs where that can be.
Writes `protocol.json` and `protocol.md` into --work-dir; run again, it goes on where it was stopped.
docs/paper_protocol.md tells what is compared.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from mmengine.config import DictAction

from mmriem.benchmark.protocol import BASELINES, Protocol, run_protocol, table
from mmriem.core.errors import RiemError
from mmriem.engine.command_line import run
from mmriem.engine.config import config_path, read_config
from mmriem.engine.scheme import read_pth_safely
from mmriem.visualization import command_and_machine


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="The paper's protocol on a detector or classifier")
    parser.add_argument('config', help='a config file, or mmdet::FOLDER/NAME.py')
    parser.add_argument('checkpoint', help='a .pth file')
    parser.add_argument('--baseline', choices=BASELINES, default=BASELINES[0])
    parser.add_argument(
        '--baseline-bits', type=float, default=4.0, help='svd: of a weight, which gives the ranks; minmax: of a code'
    )
    parser.add_argument('--seeds', type=int, default=10)
    parser.add_argument('--keep', type=int, default=3)
    parser.add_argument('--effort', type=float, default=1.0, help='factor on the optimisation steps (default: 1)')
    parser.add_argument('--dmu', type=int, default=0, help='Dmu of the metric (default: by the FLOPs of the baseline)')
    parser.add_argument(
        '--development', type=float, default=0.2, help='share of the test set that chooses, without a validation set'
    )
    parser.add_argument('--images', type=int, default=0, help='of the test set, evenly spread (default: all)')
    parser.add_argument('--measure', help='what counts, as the evaluator calls it (default: mask or box mAP, or top-1)')
    parser.add_argument('--work-dir', help='default: work_dirs/protocol/NAME-OF-CONFIG_BASELINE_BITS')
    parser.add_argument('--threads', type=int, default=os.cpu_count(), help='weights fitted at a time')
    parser.add_argument(
        '--cfg-options', nargs='+', action=DictAction, metavar='KEY=VALUE', help='override entries of the config'
    )
    parser.add_argument(
        '--trust-checkpoint', action='store_true', help='read the .pth file without protection: code in it is run'
    )
    return parser.parse_args()


def main() -> None:
    """Do what the command line asks for, and print the table."""
    args = parse_args()
    if args.dmu < 0:
        raise RiemError(f'--dmu: expected 0 (by the FLOPs of the baseline) or more, found {args.dmu}')
    read_pth_safely(trust=args.trust_checkpoint)
    config = read_config(args.config, args.cfg_options)
    protocol = Protocol(
        args.baseline,
        args.baseline_bits,
        seeds=args.seeds,
        keep=args.keep,
        effort=args.effort,
        dmu=args.dmu,
        development=args.development,
        images=args.images,
        measure=args.measure,
    )
    name = f'{config_path(args.config).stem}_{args.baseline}_{args.baseline_bits:g}'
    folder = Path(args.work_dir or Path('work_dirs') / 'protocol' / name)
    found = run_protocol(
        config,
        args.checkpoint,
        protocol,
        folder,
        threads=max(1, args.threads),
        trust=args.trust_checkpoint,
        say=lambda line: print(line, flush=True),
    )
    text = table(found)
    (folder / 'protocol.md').write_text(f'{command_and_machine()}\n{text}', encoding='utf-8')
    print(f'{found["split"]}; {found["measure"]}\n\n{text}\n{folder / "protocol.md"}')


if __name__ == '__main__':
    run(main)
