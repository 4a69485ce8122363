"""`mmriem train`: train a detector or classifier, or fine-tune a compressed one, as mmdet's tools/train.py does.

`load_from` may name a `.riem` file, which has to fit. A `.pth` file fills what fits, as in mmdet, unless the config has
the StrictLoadHook.
"""

from __future__ import annotations

import argparse

from mmengine.config import Config

from mmriem.core.errors import RiemError
from mmriem.engine.command_line import add_runner_flags, build_runner, config_from_flags

EPILOG = """\
examples:
  mmriem train cfg.py --work-dir work_dirs/cfg
  mmriem train cfg.py --cfg-options load_from=out/ckpt.riem
  mmriem train cfg.py --resume
"""


def parser(prog: str | None = None) -> argparse.ArgumentParser:
    """What the command line may hold."""
    found = argparse.ArgumentParser(
        prog,
        description='Train a detector or classifier, or fine-tune a compressed one, with the flags of mmdet.',
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    found.add_argument('config', help='a config file, or mmdet::FOLDER/NAME.py')
    found.add_argument('--amp', action='store_true', help='automatic mixed precision')
    found.add_argument('--auto-scale-lr', action='store_true', help='scale the learning rate with the batch size')
    found.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='CHECKPOINT',
        help='go on with a training run: from CHECKPOINT, or from the last one in the work dir',
    )
    add_runner_flags(found)
    return found


def scale_learning_rate(config: Config, name: str) -> None:
    """Switch the scaling on that the config has prepared."""
    setting = config.get('auto_scale_lr') or {}
    absent = [key for key in ('enable', 'base_batch_size') if key not in setting]
    if absent:
        raise RiemError(f'{name}: --auto-scale-lr needs auto_scale_lr.{" and .".join(absent)}, found none; add them')
    config.auto_scale_lr.enable = True


def command(args: argparse.Namespace) -> None:
    """Run the training that the command line asks for."""
    config = config_from_flags(args)
    missing = [key for key in ('train_dataloader', 'train_cfg', 'optim_wrapper') if config.get(key) is None]
    if missing:
        raise RiemError(f'{args.config}: expected {", ".join(missing)}, found none; name what to train with')
    if args.amp:
        config.optim_wrapper.update(type='AmpOptimWrapper', loss_scale='dynamic')
    if args.auto_scale_lr:
        scale_learning_rate(config, args.config)
    if args.resume is not None:
        config.resume = True
        config.load_from = None if args.resume == 'auto' else args.resume
    build_runner(config).train()
