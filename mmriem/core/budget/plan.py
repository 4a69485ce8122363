"""From a budget for the whole file to a configuration for each weight."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from ..errors import RiemError
from ..representations.base import Fitter
from ..weights.views import WeightView

DENSE_BITS = 16
"""Bits of an element that stays dense as fp16."""
RECORD_BITS = 8 * 84
"""Side information of one weight in the file: two SHA-256, name, shape, settings; measured, a little above."""
MANIFEST_BITS = 8 * 250
"""What a manifest takes besides the records of its weights: names of settings, before compression finds repeats."""
MIN_NEURONS = 17
"""A matrix with fewer rows or columns (a depthwise kernel, a box regressor) has too few weights for each neuron to
share: states save little there and cost much accuracy, so it stays dense while the budget allows it."""
MAX_DENSE_SHARE = 0.25
"""Share of the budget that matrices of fewer than ``MIN_NEURONS`` rows or columns may take."""
STEPS = (0.1, 0.3)
"""How much larger than planned a weight may get, in turn, by bits that rounding has left over."""


@dataclass(frozen=True)
class Plan:
    """What becomes of a weight: a configuration of the fitter, or None where it stays dense; bits that it may take."""

    view: WeightView
    configuration: Any | None
    bits: int


def target_bits(
    total_numel: int, weight_numel: int, ratio: float | None, bits: float | None, size: int | None = None
) -> float:
    """Size of the file in bits that the user asks for.

    Args:
        total_numel: elements of the whole state dict; ``ratio`` refers to all of them at 32 bits.
        weight_numel: elements of the weights to represent; ``bits`` is per element of these, everything counted.
        ratio: size of the file over the size of the state dict in fp32.
        bits: bits of the file for each represented weight.
        size: bytes of the file.

    >>> target_bits(1000, 900, 0.25, None)
    8000.0
    """
    if sum(given is not None for given in (ratio, bits, size)) != 1:
        raise RiemError('budget: expected either a ratio, bits per weight or a size, found several or none; give one')
    if size is not None:
        if size < 1:
            raise RiemError(f'size: expected at least 1 byte, found {size}')
        return 8.0 * size
    if ratio is not None:
        if not 0 < ratio <= 1:
            raise RiemError(f'ratio: expected a number above 0 and at most 1, found {ratio}')
        return ratio * 32 * total_numel
    if bits is None or not 0 < bits <= 32:
        raise RiemError(f'bits: expected a number above 0 and at most 32, found {bits}')
    return bits * weight_numel


def allocate(
    views: Sequence[WeightView],
    fitter: Fitter[Any, Any],
    available: float,
    dense_bits: Mapping[str, int] = MappingProxyType({}),
) -> list[Plan]:
    """A configuration for each weight so that all payloads and records together have at most ``available`` bits.

    Each weight gets the same bits per element. A weight that the representation cannot hold in them, that is
    smaller as fp16, or that has very few neurons (``MIN_NEURONS``), stays dense. What rounding down to whole states
    leaves over goes to the larger weights first.

    Args:
        views: the weights.
        fitter: of those that are not dense.
        available: bits for all of them.
        dense_bits: what a weight takes if it stays dense, for those that are no fp16 (``DENSE_BITS`` an element).

    Raises:
        RiemError: the budget is too small for any representation of the weights.
    """
    as_dense = {view.name: dense_bits.get(view.name, DENSE_BITS * _numel(view)) for view in views}
    dense = _narrow(views, available, as_dense)
    while True:
        represented = [view for view in views if view.name not in dense]
        left = available - sum(as_dense[name] for name in dense)
        left -= MANIFEST_BITS + RECORD_BITS * len(represented)
        elements = sum(_numel(view) for view in represented)
        if not represented or left <= 0:
            raise RiemError(
                f'budget: {available / 8:.0f} bytes are too few for {len(views)} weights with {fitter.name!r} '
                f'states; ask for a larger ratio or more bits'
            )
        rate = left / elements
        plans = [_plan(view, fitter, rate * _numel(view), as_dense[view.name]) for view in represented]
        unfit = {plan.view.name for plan in plans if plan.configuration is None}
        if not unfit:
            break
        dense |= unfit
    plans = _spend(plans, fitter, left - sum(plan.bits for plan in plans), as_dense)
    by_name = {plan.view.name: plan for plan in plans}
    return [by_name.get(view.name) or Plan(view, None, as_dense[view.name]) for view in views]


def _narrow(views: Sequence[WeightView], available: float, as_dense: Mapping[str, int]) -> set[str]:
    """Names of the weights with very few neurons, if dense they leave enough of the budget to the others."""
    narrow = [view for view in views if min(view.matrix_shape) < MIN_NEURONS]
    cost = sum(as_dense[view.name] for view in narrow)
    affordable = cost <= MAX_DENSE_SHARE * available and len(narrow) < len(views)
    return {view.name for view in narrow} if affordable else set()


def _numel(view: WeightView) -> int:
    rows, columns = view.matrix_shape
    return rows * columns


def _plan(view: WeightView, fitter: Fitter[Any, Any], bits: float, as_dense: int, smaller: Any | None = None) -> Plan:
    limit = min(bits, as_dense - RECORD_BITS)
    configuration = fitter.configure(view.matrix_shape, limit, view.kernel_size, smaller)
    if configuration is None:
        return Plan(view, None, as_dense)
    return Plan(view, configuration, fitter.planned_bits(view.matrix_shape, configuration))


def _spend(plans: list[Plan], fitter: Fitter[Any, Any], left: float, as_dense: Mapping[str, int]) -> list[Plan]:
    """Give each weight, largest first, the next larger configuration while the rest of the budget allows it."""
    spent = dict(enumerate(plans))
    largest_first = sorted(spent, key=lambda number: -_numel(plans[number].view))
    for step, number in itertools.product(STEPS, largest_first):
        plan = spent[number]
        limit = plan.bits + min(left, step * plan.bits)
        larger = _plan(plan.view, fitter, limit, as_dense[plan.view.name], plan.configuration)
        if larger.configuration is not None and plan.bits < larger.bits <= limit:
            left -= larger.bits - plan.bits
            spent[number] = larger
    return list(spent.values())
