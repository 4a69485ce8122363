"""Evaluation of a detector from Python, as tools/test.py does it, quietly."""

from __future__ import annotations

import io
import os
import time
from contextlib import redirect_stdout
from copy import deepcopy

from mmengine.config import Config
from mmengine.logging import MMLogger

from .command_line import build_runner
from .config import load_strictly
from .scheme import read_pth_safely

__all__ = ['evaluate']


def evaluate(config: Config, checkpoint: str | os.PathLike, work_dir: str | os.PathLike) -> dict[str, float]:
    """Metrics of a checkpoint on the test set of a config, and `seconds`.

    Args:
        config: as read by `mmriem.engine.config.read_config`; it is not changed.
        checkpoint: a `.riem` or `.pth` file.
        work_dir: where the Runner leaves its log.

    Raises:
        RiemError: the checkpoint cannot be read, or does not fit the config.
    """
    config = deepcopy(config)
    config.work_dir = os.fspath(work_dir)
    config.load_from, config.resume = os.fspath(checkpoint), False
    config.experiment_name = f'evaluate_{time.time_ns()}'  # the Runner refuses a name twice in a process
    config.log_level = 'ERROR'
    load_strictly(config)
    read_pth_safely()
    with redirect_stdout(io.StringIO()):  # pycocotools prints
        runner = build_runner(config)
        started = time.perf_counter()
        metrics = runner.test()
    MMLogger._instance_dict.pop(config.experiment_name, None)
    return {**metrics, 'seconds': time.perf_counter() - started}
