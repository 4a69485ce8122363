"""What the command line tools share: flags, the Runner they start, and how they report wrong input (`run`)."""

from __future__ import annotations

import argparse
import logging
import os
from importlib.util import find_spec
from pathlib import Path

import torch
from mmengine.config import Config, DictAction
from mmengine.device import get_device
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from mmriem.program import run

from .config import read_config
from .scheme import read_pth_safely

__all__ = ['add_runner_flags', 'build_runner', 'config_from_flags', 'run']


def add_runner_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that mmdet's test.py and train.py have in common, and `--trust-checkpoint`."""
    parser.add_argument('--work-dir', help='folder for logs and results (default: work_dirs/NAME-OF-CONFIG)')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        metavar='KEY=VALUE',
        help='override entries of the config: a.b=1 a.c="[x,y]" a.d="[(1,2),(3,4)]", no blanks in a value',
    )
    parser.add_argument(
        '--launcher',
        choices=['none', 'pytorch', 'slurm', 'mpi'],
        default='none',
        help='what started the processes (default: none)',
    )
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help='set by launchers')
    parser.add_argument(
        '--trust-checkpoint',
        action='store_true',
        help='read .pth files without protection: code in them is run',
    )


def config_from_flags(args: argparse.Namespace) -> Config:
    """The config that `args` name, with launcher and work_dir set, and checkpoints read as `args` say.

    With the launcher `pytorch` on a machine without accelerator the processes are joined here, by gloo.

    Raises:
        RiemError: the config cannot be read, or an option does not fit it.
    """
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    _limit_cache_of_dynamo()
    read_pth_safely(trust=args.trust_checkpoint)
    config = read_config(args.config, args.cfg_options)
    config.launcher = args.launcher
    if args.work_dir is not None:
        config.work_dir = args.work_dir
    elif config.get('work_dir') is None:
        config.work_dir = os.path.join('work_dirs', Path(config.filename).stem)
    if args.launcher == 'pytorch' and get_device() == 'cpu':
        _join_cpu_processes(config)
    return config


def build_runner(config: Config) -> Runner:
    """The Runner, or what `runner_type` of the config asks for."""
    runner = RUNNERS.build(config) if 'runner_type' in config else Runner.from_cfg(config)
    runner.logger.addFilter(_is_of_use)
    return runner


def _is_of_use(record: logging.LogRecord) -> bool:
    """Whether a line of the log is more than MMEngine's word that it is going to rename something of its own."""
    return not str(record.msg).startswith(('"FileClient" will be deprecated', '"HardDiskBackend" is the alias'))


def _limit_cache_of_dynamo() -> None:
    """As mmdet's own tools do, from its environment variable; other scopes have nothing of the kind."""
    if find_spec('mmdet') is not None:
        from mmdet.utils import setup_cache_size_limit_of_dynamo

        setup_cache_size_limit_of_dynamo()


def _join_cpu_processes(config: Config) -> None:
    """What MMEngine's Runner does with CUDA devices only, which it selects and names to the model wrapper."""
    torch.distributed.init_process_group('gloo')
    config.model_wrapper_cfg = {
        'broadcast_buffers': False,
        'find_unused_parameters': config.get('find_unused_parameters', False),
        **config.get('model_wrapper_cfg', {}),
        'device_ids': None,
    }
