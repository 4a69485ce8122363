"""Unpickling of runner checkpoints in which no name from the file reaches code that was not written for it.

torch's weights-only unpickler builds tensors and plain containers, and looks other names up in an
allow-list. MMEngine's runner checkpoints need a few names more: `HistoryBuffer`, numpy scalars and arrays,
`ConfigDict`, and `getattr` for the methods that a `HistoryBuffer` carries. Each is bound to a stand-in, see
`mmriem.core.safe_pickle`. Before torch 2.6, whose own reader cannot be told so, `plain_pickle` reads instead.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.logging import HistoryBuffer

from mmriem.core.safe_pickle import ARRAYS, StandIn, build

from .plain_pickle import read_plain

__all__ = ['load_plain']

OLD_TORCH = torch.__version__ < (2, 6)
"""Whether the allow-list of torch's own reader takes no stand-ins."""

STATISTICS = ('min', 'max', 'mean', 'current')


class _History(StandIn):
    """Stands in for `mmengine.logging.HistoryBuffer`."""

    def __setstate__(self, state: dict) -> None:
        self.state = state

    def build(self) -> HistoryBuffer:
        log, count = self.state['_log_history'], self.state['_count_history']
        return HistoryBuffer(log.build(), count.build(), self.state['max_length'])


def _history_method(owner: type, name: str) -> None:
    """Stands in for `getattr`. A `HistoryBuffer` has its statistics anyway, so there is nothing to fetch."""
    if owner is not _History or name not in STATISTICS:
        raise pickle.UnpicklingError(f'Unsupported global: GLOBAL getattr ({name!r} of {owner!r})')


def _plain_dict(items: dict | None = None) -> dict:
    return dict(items or {})


def _no_bytes() -> bytes:
    return b''


STAND_INS = {
    'mmengine.logging.history_buffer.HistoryBuffer': _History,
    'mmengine.config.config.ConfigDict': _plain_dict,
    **ARRAYS,
    'builtins.getattr': _history_method,
    'builtins.bytes': _no_bytes,  # how pickle protocol 2 spells b''
}


@contextmanager
def _only_stand_ins() -> Iterator[None]:
    """Make the stand-ins the whole allow-list; what other code has allowed comes back at the end."""
    allowed = torch.serialization
    before = allowed.get_safe_globals()
    allowed.clear_safe_globals()
    allowed.add_safe_globals([(stand_in, name) for name, stand_in in STAND_INS.items()])
    try:
        yield
    finally:
        allowed.clear_safe_globals()
        allowed.add_safe_globals(before)


def load_plain(path: str, map_location: Any = 'cpu') -> Any:
    """Read a file of `torch.save` that holds tensors, plain values and MMEngine's logs, and nothing else.

    Args:
        path: the file.
        map_location: as for `torch.load`.

    Raises:
        pickle.UnpicklingError: the file names a class or function that is not on the list; the message has
            `GLOBAL NAME` in it.
        Exception: whatever a damaged file makes torch or numpy raise.
    """
    if OLD_TORCH:
        return build(read_plain(path, STAND_INS, map_location))
    with _only_stand_ins():
        tree = torch.load(path, map_location=map_location, weights_only=True)
    return build(tree)
