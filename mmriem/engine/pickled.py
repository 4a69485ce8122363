"""Unpickling of runner checkpoints in which no name from the file reaches code that was not written for it.

`plain_pickle` builds tensors and plain containers, and looks other names up in a list. MMEngine's runner checkpoints
need a few names more: `HistoryBuffer`, numpy scalars and arrays, `ConfigDict`, and `getattr` for the methods that a
`HistoryBuffer` carries. Each is bound to a stand-in, see `mmriem.core.safe_pickle`.
"""

from __future__ import annotations

import os
import pickle
from functools import partial
from typing import Any

from mmengine.logging import HistoryBuffer

from mmriem.core.pickle_machine import StandIn, mapping
from mmriem.core.safe_pickle import ARRAYS

from .plain_pickle import read_plain

__all__ = ['load_plain']

STATISTICS = ('min', 'max', 'mean', 'current')


class _History(StandIn):
    """Stands in for `mmengine.logging.HistoryBuffer`."""

    def __init__(self, *_: Any) -> None:
        self.state: dict[str, Any] = {}

    def __setstate__(self, state: dict) -> None:
        self.state = state

    @property
    def n_bytes(self) -> int:
        """Of its two arrays, which are copied twice."""
        return 2 * sum(self.state[name].n_bytes for name in ('_log_history', '_count_history'))

    def build(self) -> HistoryBuffer:
        log, count = self.state['_log_history'], self.state['_count_history']
        return HistoryBuffer(log.build(), count.build(), self.state['max_length'])


def _history_method(owner: type, name: str) -> None:
    """Stands in for `getattr`. A `HistoryBuffer` has its statistics anyway, so there is nothing to fetch."""
    if owner is not _History or name not in STATISTICS:
        raise pickle.UnpicklingError(f'Unsupported global: GLOBAL getattr ({name!r} of {owner!r})')


STAND_INS = {
    'mmengine.logging.history_buffer.HistoryBuffer': _History,
    'mmengine.config.config.ConfigDict': partial(mapping, dict),
    **ARRAYS,
    'builtins.getattr': _history_method,
}


def load_plain(path: str | os.PathLike, map_location: Any = 'cpu') -> Any:
    """Read a file of `torch.save` that holds tensors, plain values and MMEngine's logs, and nothing else.

    Args:
        path: the file.
        map_location: as for `torch.load`.

    Raises:
        pickle.UnpicklingError: the file names a class or function that is not on the list; the message has
            `GLOBAL NAME` in it.
        Exception: whatever a damaged file makes torch or numpy raise.
    """
    return read_plain(path, STAND_INS, map_location)
