"""How far a compression is, and how long each stage and each weight has taken."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping

from .encoded_weight import EncodedWeight

OnProgress = Callable[[float, str], None]
"""Called with the share of the work done, 0 to 1, and the name of the weight or the stage that it concerns."""
TURN = 0.25
"""Share of what is left of a search that a turn is taken for: five to nine turns are usual, so most of it then."""
OnLayer = Callable[[int, int, int], None]
"""Called as a weight is done: how many are, of how many, and their bytes. A search does all of them several times."""


class WorkLog:
    """Progress and seconds, which every stage of a compression writes to and none reads.

    Attributes:
        stage_seconds: seconds on the clock by stage.
        weight_seconds: CPU seconds of each weight by stage.

    Args:
        efforts: what each stage roughly takes, in any unit, in their order.
        names: of the weights.
        on_progress, on_layer: where progress is told.
    """

    def __init__(
        self,
        efforts: Mapping[str, float],
        names: Iterable[str],
        on_progress: OnProgress | None = None,
        on_layer: OnLayer | None = None,
    ) -> None:
        self._on_progress, self._on_layer = on_progress, on_layer
        self._bounds = _bounds(efforts)
        self.stage_seconds: defaultdict[str, float] = defaultdict(float)
        self.weight_seconds = {name: defaultdict[str, float](float) for name in names}

    def stage(self, name: str) -> OnProgress:
        """To be called with the share of that stage that is done."""
        return self._between(*self._bounds[name])

    def turns(self, name: str) -> Iterator[OnProgress]:
        """Turns of a search whose number is not known: each takes the same share of what is left of the stage."""
        first, last = self._bounds[name]
        while True:
            then = first + TURN * (last - first)
            yield self._between(first, then)
            first = then

    @contextlib.contextmanager
    def within(self, stage: str, name: str) -> Iterator[Callable[[float], None]]:
        """Within, a stage that is timed, and tells its progress by the share that is done."""
        advance = self.stage(stage)
        with self.timed(stage):
            advance(0.0, name)
            yield lambda share: advance(share, name)
            advance(1.0, name)

    @contextlib.contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Within, seconds count for that stage."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.stage_seconds[stage] += time.perf_counter() - started

    def counter(self, of: int) -> Callable[[EncodedWeight], None]:
        """To be called with each weight that is done, of so many: tells how many are, and their bytes."""
        done, size, lock = 0, 0, threading.Lock()

        def count(weight: EncodedWeight) -> None:
            nonlocal done, size
            with lock:
                done += 1
                size += weight.encoded.payload_bits() // 8 if weight.encoded is not None else 0
                if self._on_layer:
                    self._on_layer(done, of, size)

        return count

    def _between(self, first: float, last: float) -> OnProgress:
        def advance(share: float, name: str) -> None:
            if self._on_progress:
                self._on_progress(first + (last - first) * share, name)

        return advance


def _bounds(efforts: Mapping[str, float]) -> dict[str, tuple[float, float]]:
    """Where in the whole work each stage begins and ends.

    >>> _bounds({'fit': 3.0, 'write': 1.0})
    {'fit': (0.0, 0.75), 'write': (0.75, 1.0)}
    """
    bounds, done, total = {}, 0.0, sum(efforts.values())
    for name, effort in efforts.items():
        bounds[name] = (done / total, (done + effort) / total)
        done += effort
    return bounds
