"""How the programs of mmriem end: what the user can put right is one line on stderr, all else keeps its traceback."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable

import torch

from .core.errors import RiemError

__all__ = ['run']


def run(main: Callable[[], None]) -> None:
    """Call `main`; what the user can put right ends it with one line on stderr and exit status 1.

    That is a `RiemError`, and a file that is missing or may not be read. All else keeps its traceback.
    """
    try:
        main()
    except RiemError as error:
        sys.exit(f'error: {_one_line(error)}')
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError) as error:
        sys.exit(f'error: {_file_and_reason(error)}; check the paths in the config and on the command line')
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        _leave_processes()


def _leave_processes() -> None:
    """End what MMEngine leaves running: a thread of Gloo that lets go of a tensor while Python ends aborts the process.

    After the barrier, which has no tensors of Python, nothing is left to do for these threads, and without a model that
    refers to them they end.
    """
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
    gc.collect()


def _file_and_reason(error: OSError) -> str:
    if error.filename is not None:
        return f'{error.filename}: {error.strerror}'
    return _one_line(str(error).strip().splitlines()[-1])  # a data loader's worker hands on its whole traceback


def _one_line(text: object) -> str:
    return ' '.join(str(text).split())
