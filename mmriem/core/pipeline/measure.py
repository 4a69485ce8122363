"""The stage that measures: the pullback metric of each weight, kept until the weight is solved."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

from ..errors import Interrupted
from ..execution.executor import Executor
from ..images.probe import Probe
from ..metric.metric import Metric
from ..metric.pullback import each_metric
from .job import Job
from .progress import WorkLog


@dataclass(frozen=True, eq=False)
class Metrics:
    """The metrics of the weights that this process owns, in memory or in its journal.

    Attributes:
        sources: where the metric of each weight comes from, in every process; a weight without one has the identity.
    """

    sources: dict[str, str]
    _executor: Executor
    _held: dict[str, Metric] = field(default_factory=dict)
    _stays: bool = False

    def take(self, name: str) -> Metric | None:
        """The metric of a weight, which is not held in memory any longer unless it stays; None for the identity.

        Raises:
            Interrupted: the journal has lost it since it was measured or looked for.
        """
        if name not in self.sources:
            return None
        if name in self._held:
            return self._held[name] if self._stays else self._held.pop(name)
        piece = self._executor.kept(_metric_key(name))
        if piece is None:
            journal = self._executor.journal
            where = 'memory' if journal is None else journal.folder
            raise Interrupted(
                f'{where}: expected the metric of weight {name!r}, found none that is whole, '
                'though it was a while ago; check the disk, and go on with --resume'
            )
        return Metric.from_bytes(piece)


def measure(job: Job, probe: Probe | None, log: WorkLog, *, stays: bool = False) -> Metrics:
    """Run the network on the images, unless the journal has all the metrics already, each of them whole.

    Args:
        job: the compression.
        probe: the images; None: all weights have the identity.
        log: of the work.
        stays: whether a metric may be taken more than once.
    """
    executor = job.executor
    if probe is None:
        return Metrics({}, executor)
    own = {name: _kept_source(executor, name) for name in job.own}
    held: dict[str, Metric] = {}
    every = executor.workers.exchange(b'new' if None in own.values() else b'kept')
    if b'new' in every:
        seen = dict.fromkeys(own, b'')
        with log.timed('images'):
            for name, metric in each_metric(
                job.model_on_device(),
                job.views,
                probe,
                executor,
                list(job.owners.values()),
                seed=job.settings.fit.seed,
                on_progress=lambda share: log.stage('images')(share, 'images'),
            ):
                seen[name] = metric.source.encode()
                if executor.journal is None:
                    held[name] = metric
                else:
                    executor.keep(_metric_key(name), metric.to_bytes())
            for name, source in seen.items():
                executor.keep(_source_key(name), source)
        own.update(seen)
    named = {name: source.decode() for name, source in own.items() if source}
    parts = executor.workers.exchange(json.dumps(named).encode())
    found = {name: source for part in parts for name, source in json.loads(part).items()}
    return Metrics({name: found[name] for name in job.owners if name in found}, executor, held, stays)


def _kept_source(executor: Executor, name: str) -> bytes | None:
    """Where the metric of a weight comes from, empty for the identity; None where the journal has lost either."""
    source = executor.kept(_source_key(name))
    return None if source and executor.kept(_metric_key(name)) is None else source


def _metric_key(name: str) -> str:
    return f'metric {name}'


def _source_key(name: str) -> str:
    return f'source {name}'
