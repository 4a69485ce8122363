"""What a predicted error of the outputs means for the user, in words, and what of a file he should know besides.

The prediction is first order: it adds up what the rounding of each weight alone does to the outputs, so it is close
where it is small. The levels are those at which measured networks have lost about that much, see
docs/experiments/expectation.md.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from mmriem.core.weights.views import DEFAULT_MIN_NUMEL

__all__ = ['HOPELESS', 'VERDICTS', 'expected_by_agreement', 'expected_loss', 'kept_range', 'notes', 'verdict']

HOPELESS = 1.0
"""Predicted error above which outputs are wrong by more than they say."""
LEVELS = (
    (0.05, 'no loss to be seen'),
    (0.1, 'a loss of up to a few points'),
    (0.4, 'a loss of some points, more in detectors than in classifiers'),
    (HOPELESS, 'a large loss'),
)
"""What to expect of a file up to a predicted error."""

VERDICTS = ((0.05, 'visually lossless'), (0.1, 'good'), (HOPELESS, 'lossy'), (math.inf, 'broken'))
"""Up to that predicted error of the outputs, as `LEVELS` has it in sentences."""


def verdict(error: float | None) -> str:
    """A word for a predicted error of the outputs.

    >>> verdict(0.05), verdict(0.5), verdict(None)
    ('visually lossless', 'lossy', 'not predicted')
    """
    return 'not predicted' if error is None else next(word for most, word in VERDICTS if error <= most)


LEAST_LOST = 0.2
"""A detector loses at least this part of what its agreement lacks, and at most all of it. So did the files of
docs/agreement.md."""


def kept_range(agreement: float) -> tuple[float, float]:
    """Least and most share of its mAP that a detector keeps, by its AP against the original on real images.

    >>> kept_range(0.9)
    (0.9, 0.98)
    """
    return agreement, 1 - LEAST_LOST * (1 - agreement)


def expected_by_agreement(figures: Mapping[str, Any] | None) -> list[str]:
    """A sentence on the accuracy of a file, by its agreement with the original; none where that tells nothing.

    On procedural images detectors differ much that hardly lose, and of classifiers no such range is known.

    Args:
        figures: see `mmriem.engine.agreement.Agreement`.
    """
    if not figures or figures['kind'] != 'detections' or figures['images'].get('kind') != 'folder':
        return []
    if figures['AP'] is None:
        return []
    least, most = (100 * share for share in kept_range(figures['AP']))
    return [f'by its agreement expect it to keep {least:.0f} to {most:.0f} % of its mAP, as measured detectors did']


def expected_loss(error: float | None) -> str:
    """A sentence on the accuracy of a file, by the predicted relative error of the outputs.

    >>> expected_loss(0.025)
    'expect no loss to be seen (predicted error of the outputs 0.025)'
    """
    if error is None:
        return 'what is lost is not predicted, since no images were run: evaluate the file'
    words = next((told for most, told in LEVELS if error <= most), 'that it finds next to nothing')
    advice = '' if error <= LEVELS[0][0] else ': evaluate the file'
    return f'expect {words} (predicted error of the outputs {error:.2g}){advice}'


def notes(report: Mapping[str, Any]) -> list[str]:
    """Sentences on what to expect of a file.

    Args:
        report: of a compression.
    """
    if report['settings'].get('states') == 'as trained':
        return _without_states(report)
    return [expected_loss(report['totals']['predicted_error']), *_unmeasured(report), *_uncorrected(report)]


def _uncorrected(report: Mapping[str, Any]) -> list[str]:
    """The modules for whose corrected norms and biases the file had no room."""
    names = report['totals'].get('uncorrected', [])
    return [f'no room for corrected norms and biases, so these stay as they were: {_few(names)}'] if names else []


def _few(names: list[str]) -> str:
    return ', '.join(names[:3]) + (f' and {len(names) - 3} more' if len(names) > 3 else '')


def _unmeasured(report: Mapping[str, Any]) -> list[str]:
    """The weights that no gradient reached while others were measured."""
    fitted = [weight for weight in report['weights'] if weight['representation'] != 'dense']
    names = [weight['name'] for weight in fitted if weight['metric'] == 'identity']
    if not names or len(names) == len(fitted):
        return []
    return [
        f'{len(names)} of {len(fitted)} weights were not reached when the detector predicted, and are taken as '
        f'averagely sensitive: {_few(names)}'
    ]


def _without_states(report: Mapping[str, Any]) -> list[str]:
    """What the weights cost that a RieM model has as ordinary tensors."""
    rest = [
        weight
        for weight in report['weights']
        if weight['representation'] == 'dense' and math.prod(weight['shape']) >= DEFAULT_MIN_NUMEL
    ]
    told = ['the states are written as they are trained, so what they can do stays']
    if rest:
        size = sum(weight['bits'] for weight in rest) / 8
        told.append(
            f'{len(rest)} weights that have no states stay dense and take {size:,.0f} of the '
            f'{report["totals"]["bytes"]:,} bytes: --bits, --ratio or --size compresses every weight anew'
        )
    return told
