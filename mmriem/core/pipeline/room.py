"""The stage before all others: whether there is a file that meets the budget."""

from __future__ import annotations

import hashlib
import math

from ..budget.plan import DENSE_BITS, MANIFEST_BITS, RECORD_BITS
from ..errors import RiemError
from .archiving import Frame
from .encoded_weight import EncodedWeight, EncodedWeights
from .job import Job
from .solve import plan_weights

NEAR = 2
"""Times what the records take, that a budget may be above what stays dense for the smallest file to be made."""
COARSE = 2.0**60
"""Step of a weight over its largest element that leaves nothing of it."""

DIGEST = 32
"""Bytes of a SHA-256."""


def require_room(job: Job, frame: Frame) -> None:
    """Refuse a budget that no file can meet, before anything is run or fitted.

    Args:
        job: the compression.
        frame: what the file holds besides the weights.

    Raises:
        RiemError: the budget is too small for what stays dense and for the records of the weights.
    """
    budget = job.settings.budget
    if not budget.is_given or budget.tolerance is not None:
        return
    if not job.settings.fit.kind.stepper:
        plan_weights(job, frame)
        return
    wanted = job.wanted_bits
    rest = frame.rest_bits(job.expected_state, wanted / job.elements)
    records = sum(min(RECORD_BITS, DENSE_BITS * math.prod(view.shape)) for view in job.views)
    if wanted > rest + NEAR * (MANIFEST_BITS + records):
        return
    least = rest if wanted <= rest else max(rest, _least_bits(job, frame, wanted / job.elements))
    if wanted <= least:
        raise RiemError(
            f'budget: expected room for the {least // 8} bytes of what stays dense and of the records, found '
            f'{wanted / 8:.0f} bytes for the whole file; ask for a larger ratio or more bits, or compress more of the '
            'weights'
        )


def _least_bits(job: Job, frame: Frame, rate: float) -> int:
    """Bits of a file whose weights are all zero, as far as states take less than the dense weight.

    Those of weights that are not are taken to have records that no other has.
    """
    weights: EncodedWeights = {}
    for view in job.views:
        matrix = job.matrix(view)
        problem = job.settings.fit.stepper.problem(matrix, None, None, view.kernel_size)
        encoded, _ = problem.solve(COARSE * (float(matrix.abs().max()) or 1.0))
        dense = EncodedWeight(None).bits(view, job.state_dict[view.name])
        states = encoded if encoded.payload_bits() + RECORD_BITS < dense else None
        weights[view.name] = EncodedWeight(states, digest=hashlib.sha256(view.name.encode()).hexdigest())
    payloads = [weight.encoded.to_payload() for weight in weights.values() if weight.encoded is not None]
    alike = len(payloads) - len(set(payloads))
    return 8 * (len(frame.archive(weights, job.expected_state, rate).to_bytes()) + DIGEST * alike)
