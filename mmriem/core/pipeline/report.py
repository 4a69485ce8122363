"""The report of a compression: JSON-able, for programs and for the page that people read. Sizes are in bytes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from ..file.archive import Archive
from ..weights.views import WeightView, every_weight
from .archiving import Fitting
from .encoded_weight import EncodedWeight, EncodedWeights
from .job import Job, numel
from .measure import Metrics
from .progress import WorkLog
from .solve import Solution


def archive_report(
    archive: Archive, model: nn.Module, views: Iterable[WeightView], weights: EncodedWeights
) -> dict[str, Any]:
    """What the archive and the encoded weights alone tell: the settings, an entry for each weight, totals.

    What only a compression knows has the values of no work: every report has the same keys.
    """
    state_dict = {key: tensor.detach().cpu() for key, tensor in model.state_dict().items()}
    size, elements = len(archive.to_bytes()), numel(state_dict)
    shapes = {view.name: math.prod(view.shape) for view in views}
    represented = sum(count for name, count in shapes.items() if weights[name].encoded is not None)
    return {
        'settings': dict(archive.settings),
        'weights': [_entry(view, state_dict[view.name], weights.get(view.name)) for view in every_weight(model)],
        'totals': {
            'bytes_fp32': 4 * elements,
            'bytes_fp16': 2 * elements,
            'bytes': size,
            'ratio': size / (4 * elements),
            'bits_per_weight': 8 * size / sum(shapes.values()),
            'weights': len(weights),
            'represented_elements': represented,
            'other_elements': elements - represented,
            'scale': None,
            'tuning': None,
            'uncorrected': [],
            'predicted_error': None,
            'seconds': 0.0,
            'stages': {},
            'turns': 0,
            'processes': 1,
            'threads': 1,
        },
    }


def compression_report(
    fitting: Fitting, job: Job, metrics: Metrics, solution: Solution, tuned: Any, log: WorkLog
) -> dict[str, Any]:
    """All of :func:`archive_report`, and how it came about."""
    report = archive_report(fitting.archive, job.model, job.views, solution.weights)
    for entry in report['weights']:
        entry.update(_work(entry['name'], metrics.sources, job.costs, log))
    report['totals'].update(
        scale=solution.scale,
        tuning=None if tuned is None else {**vars(tuned), 'kept': tuned.kept},
        uncorrected=list(fitting.uncorrected),
        predicted_error=_predicted_error(solution.weights, metrics.sources),
        seconds=sum(entry['seconds'] for entry in report['weights']),
        stages={stage: round(seconds, 3) for stage, seconds in log.stage_seconds.items()},
        turns=solution.turns,
        processes=job.executor.workers.size,
        threads=job.executor.threads,
    )
    return report


def _predicted_error(weights: EncodedWeights, sources: Mapping[str, str]) -> float | None:
    measured = [weight.distortion for name, weight in weights.items() if name in sources]
    known = [distortion for distortion in measured if distortion is not None]
    return math.sqrt(sum(known)) if known else None


def _entry(view: WeightView, tensor: Tensor, weight: EncodedWeight | None) -> dict[str, Any]:
    weight = weight or EncodedWeight.whole(view, tensor, None, None, 0.0)
    bits, encoded = weight.bits(view, tensor), weight.encoded
    return {
        'name': view.name,
        'aliases': list(view.aliases),
        'shape': list(view.shape),
        'representation': encoded.name if encoded is not None else 'dense',
        'settings': encoded.settings_json() if encoded is not None else {},
        'bits': bits,
        'bits_per_weight': bits / math.prod(view.shape),
        'relative_error': weight.relative_error,
        'snr_db': weight.snr_db,
        'distortion': weight.distortion,
        'metric': 'identity',
        'seconds': 0.0,
        'seconds_of_stage': {},
        'predicted_seconds': None,
    }


def _work(name: str, sources: Mapping[str, str], costs: Mapping[str, float], log: WorkLog) -> dict[str, Any]:
    seconds: Mapping[str, float] = log.weight_seconds.get(name, {})
    return {
        'metric': sources.get(name, 'identity'),
        'seconds': round(sum(seconds.values()), 3),
        'seconds_of_stage': {stage: round(its, 3) for stage, its in seconds.items()},
        'predicted_seconds': costs.get(name),
    }
