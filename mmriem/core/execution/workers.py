"""Several processes that share a compression: who does what, and how results reach those that need them.

The core does not know how processes talk; :class:`Workers` is one process alone, a subclass tells how more do.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence

_LENGTH = struct.Struct('<Q')


class Workers:
    """The processes of a compression, as one of them sees them.

    Every process makes the same calls of :meth:`exchange` and :meth:`gather` in the same order.

    Attributes:
        rank: number of this process; 0 is the one that writes.
        size: how many there are.
    """

    rank = 0
    size = 1

    def exchange(self, data: bytes) -> list[bytes]:
        """What each process gave, by rank, in every process.

        Raises:
            Interrupted: a process is gone.
        """
        return [data]

    def gather(self, data: bytes, to: int) -> list[bytes]:
        """What each process gave, by rank, in the process of rank ``to``; nothing in the others.

        Raises:
            Interrupted: a process is gone.
        """
        return [data]

    def post(self, data: bytes, to: int) -> None:
        """Give another process what it :meth:`receive`s, without waiting for it.

        Raises:
            Interrupted: the processes cannot be reached.
        """
        raise NotImplementedError('one process alone has no other')

    def receive(self, sender: int) -> bytes:
        """What that process has posted to this one, in that order, one at a time; waits for it.

        Raises:
            Interrupted: the other process is gone.
        """
        raise NotImplementedError('one process alone has no other')


def share_out(costs: Sequence[float], size: int) -> list[int]:
    """The rank that does each piece of work, so that all are done about equally soon: the costliest first.

    >>> share_out([5, 1, 4, 3], 2)
    [0, 0, 1, 1]
    """
    loads = [0.0] * size
    owners = [0] * len(costs)
    for number in sorted(range(len(costs)), key=lambda number: -costs[number]):
        owners[number] = loads.index(min(loads))
        loads[owners[number]] += costs[number]
    return owners


def join(parts: Iterable[bytes]) -> bytes:
    """The parts as one, which :func:`split` takes apart.

    >>> split(join([b'a', b'', b'bc']))
    [b'a', b'', b'bc']
    """
    return b''.join(piece for part in parts for piece in (_LENGTH.pack(len(part)), part))


def split(data: bytes) -> list[bytes]:
    """Inverse of :func:`join`."""
    parts, start = [], 0
    while start < len(data):
        (length,) = _LENGTH.unpack_from(data, start)
        start += _LENGTH.size
        parts.append(data[start : start + length])
        start += length
    return parts
