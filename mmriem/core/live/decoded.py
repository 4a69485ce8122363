"""Decoded weights, kept while they are asked for again, and decoded ahead of being asked for.

Each weight that a network holds compressed is decoded when it is applied. The order in which a network applies its
weights is about the same for each input; it is learned from the last run, and before the first one taken to be that of
the file. So the next weights are decoded by other threads while products with this one run, and a weight that will not
be asked for again before the run ends is let go at once.
"""

from __future__ import annotations

import math
import os
import re
import threading
import weakref
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from torch import nn

from ..errors import RiemError
from ..representations.blocks import State
from .stored import Stored

States = Mapping[str, State]
CACHE = '32MB'
"""Most bytes of decoded weights that are kept where no size is given."""
AHEAD = 4 << 20
"""Bytes of decoded weights that are made ahead of being asked for; one weight may have more."""
UNITS = {'B': 1, 'KB': 10**3, 'MB': 10**6, 'GB': 10**9, 'KIB': 2**10, 'MIB': 2**20, 'GIB': 2**30}
_SIZE = re.compile(rf'\s*(\d+(?:\.\d+)?)\s*({"|".join(UNITS)})\s*', re.IGNORECASE)


def size_of(cache: str | int) -> int:
    """Bytes of a size.

    Raises:
        RiemError: it is none.

    >>> size_of('32MB'), size_of('1.5 KiB'), size_of(0)
    (32000000, 1536, 0)
    """
    if isinstance(cache, int) and not isinstance(cache, bool) and cache >= 0:
        return cache
    found = _SIZE.fullmatch(cache) if isinstance(cache, str) else None
    if found is None:
        raise RiemError(f"cache: expected a size such as '32MB', or a number of bytes, found {cache!r}")
    return math.floor(float(found[1]) * UNITS[found[2].upper()])


class _Run(threading.local):
    """The run of a network in one thread: the weights that it has asked for, and its place in the expected order."""

    asked: list[Stored] | None = None
    at = 0


class DecodedWeights:
    """States of the weights of one network. Threads may ask at the same time; each weight is decoded by one of them.

    Within a run (:meth:`watch`) at most ``size`` bytes are kept, the least recently asked for are let go first; nothing
    is kept between runs. Outside of a run, where a part of a network is called alone, nothing is known of what comes
    next: what was asked for stays, within ``size``.

    Args:
        size: bytes.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._lock = threading.Lock()
        self._kept: OrderedDict[Stored, Future[States]] = OrderedDict()
        self._ahead: set[Stored] = set()
        self._checked: weakref.WeakSet[Stored] = weakref.WeakSet()
        self._expected: Sequence[Stored] = ()
        self._is_guess = True
        self._runs = 0
        self._run = _Run()

    @property
    def held(self) -> int:
        """Bytes of decoded weights at the moment."""
        with self._lock:
            return sum(_bytes(future) for future in self._kept.values())

    def expect(self, weight: Stored, in_place_of: Stored | None = None) -> None:
        """A weight that a run may ask for, after those that were told of before."""
        with self._lock:
            self._expected = [*(other for other in self._expected if other is not in_place_of), weight]
            self._is_guess = True
            if in_place_of is not None:
                self._kept.pop(in_place_of, None)

    def watch(self, network: nn.Module) -> None:
        """A call of the network is a run."""
        network.register_forward_pre_hook(self.begin)
        network.register_forward_hook(self.end)

    def begin(self, *_: Any) -> None:
        """A run begins in this thread; one that an error has broken off ends."""
        with self._lock:
            self._runs += self._run.asked is None
            self._run.asked, self._run.at = [], 0

    def end(self, *_: Any) -> None:
        """The run ends: its order is expected of the next one, and what was decoded is let go."""
        with self._lock:
            if self._run.asked is None:
                return
            self._expected, self._is_guess = self._run.asked, False
            self._run.asked = None
            self._runs -= 1
            if not self._runs:
                for future in self._kept.values():
                    future.cancel()
                self._kept.clear()
                self._ahead.clear()

    def states(self, weight: Stored) -> States:
        """The states of a weight, decoded now, or before.

        Raises:
            RiemError: as :meth:`Stored.open`.
        """
        with self._lock:
            following, is_last = self._advance(weight)
            future = self._kept.get(weight)
            is_mine = future is None or future.cancel()  # by a thread that has not begun
            if future is None or is_mine:
                future = self._kept[weight] = Future()
                future.set_running_or_notify_cancel()
            self._ahead.discard(weight)
            self._kept.move_to_end(weight)
            if is_last:
                del self._kept[weight]
            self._decode_ahead(following)
        if is_mine:
            self._decode(weight, future)
        found = future.result()
        with self._lock:
            self._evict()
        return found

    def _advance(self, weight: Stored) -> tuple[Sequence[Stored], bool]:
        """What will be asked for after this weight, and whether that weight itself will not."""
        if self._run.asked is None:
            return (), False
        self._run.asked.append(weight)
        following = self._expected[self._run.at :]
        if weight in following:
            self._run.at += following.index(weight) + 1
            following = self._expected[self._run.at :]
        return following, not self._is_guess and weight not in following

    def _decode_ahead(self, following: Sequence[Stored]) -> None:
        threads = torch.get_num_threads() - 1
        if threads < 1:
            return
        waiting = sum(weight.symbols for weight in self._ahead)
        for weight in following:
            if weight in self._kept:
                continue
            waiting += weight.symbols
            if waiting > min(AHEAD, self.size) and (self._ahead or weight.symbols > self.size):
                return
            future: Future[States] = Future()
            self._kept[weight] = future
            self._ahead.add(weight)
            _pool(threads).submit(self._decode_unless_begun, weight, future)

    def _decode_unless_begun(self, weight: Stored, future: Future[States]) -> None:
        if future.set_running_or_notify_cancel():
            self._decode(weight, future)

    def _decode(self, weight: Stored, future: Future[States]) -> None:
        try:
            found = weight.open(check=weight not in self._checked)
        except BaseException as error:  # for whoever asks for it
            with self._lock:
                if self._kept.get(weight) is future:
                    del self._kept[weight]
                self._ahead.discard(weight)
            future.set_exception(error)
        else:
            self._checked.add(weight)
            future.set_result(found)

    def _evict(self) -> None:
        """Let go what was asked for longest ago, until the others have ``size`` bytes."""
        total = sum(_bytes(future) for future in self._kept.values())
        for weight, future in list(self._kept.items()):
            if total <= self.size:
                return
            if future.done():
                total -= _bytes(future)
                del self._kept[weight]
                self._ahead.discard(weight)

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy decodes for itself."""
        return DecodedWeights, (self.size,)


def _bytes(future: Future[States]) -> int:
    if not future.done() or future.cancelled() or future.exception() is not None:
        return 0
    return sum(state.nbytes for state in future.result().values())


_POOLS: dict[tuple[int, int], ThreadPoolExecutor] = {}


def _pool(threads: int) -> ThreadPoolExecutor:
    """So many threads of this process (threads do not survive a fork), for all networks."""
    key = os.getpid(), threads
    if key not in _POOLS:
        _POOLS[key] = ThreadPoolExecutor(threads, 'mmriem-decode')
    return _POOLS[key]
