"""From dense modules to live ones and back."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import nn

from ..errors import RiemError
from ..representations.grid import STATE_BITS
from ..representations.registry import get_representation
from ..weights.views import find_weights, parameter_owners
from .held import HeldWeight
from .module import LiveModule, attach, become_plain, hold_states
from .states import FROZEN, INTEGERS, WeightStates

DEFAULT_RATIO = 0.19
"""Size of the states of a weight over its fp32 values where no size is given: the paper's."""


def make_dense(model: nn.Module) -> dict[str, HeldWeight]:
    """Replace states by ordinary parameters with the weights that they regenerate, in place.

    Returns:
        The states by the state-dict key of their weight.

    >>> from .layers import RieMLinear
    >>> layer = RieMLinear(32, 32, representation='bilinear')
    >>> list(make_dense(layer)), type(layer).__name__, sorted(layer.state_dict())
    (['weight'], 'Linear', ['bias', 'weight'])
    """
    parameters: dict[HeldWeight, nn.Parameter] = {}
    released: dict[str, HeldWeight] = {}
    for prefix, module in list(model.named_modules()):
        if isinstance(module, LiveModule):
            held = become_plain(module)
            for attribute, states in held.named():
                if states not in parameters:
                    parameters[states] = nn.Parameter(states.made().detach().clone(), states.is_trained)
                    released[f'{prefix}.{attribute}' if prefix else attribute] = states
                module.register_parameter(attribute, parameters[states])
    return released


@contextmanager
def writable_weights(model: nn.Module) -> Iterator[None]:
    """Within, writes to a weight of a live module count, so that initialisers work on it as on any other.

    A weight that was written to gets fresh states of the same mean and spread at the end; elsewhere a write
    to a regenerated weight is lost. States that are loaded within stay.
    """
    found = [module for module in model.modules() if isinstance(module, HeldWeight)]
    drafted = [states for states in found if states.begin_draft()]
    try:
        yield
    finally:
        for states in drafted:
            states.end_draft()


def make_live(
    model: nn.Module,
    *,
    representation: str = 'sigmoid',
    ratio: float | None = None,
    bits: float | None = None,
    state_bits: int = 0,
    effort: float = 1.0,
    integers: str = FROZEN,
    materialize: bool = True,
    include: Sequence[str] = ('*',),
    exclude: Sequence[str] = (),
) -> list[str]:
    """Replace the weights of a model by states of the same mean and spread, in place.

    The states are fresh ones, to train from or to be filled from a ``.riem`` file, which brings its own sizes
    and representation of each weight. A weight too small for states of that size is held dense until then. An
    ordinary checkpoint is fitted with the representation and the size that are given here.

    Args:
        model: any module.
        representation: name of the representation.
        ratio: size of the states of each weight, quantised as in a file, to its fp32 values; or
        bits: their bits for each weight. Without either the ratio is ``DEFAULT_RATIO``.
        state_bits: as in :class:`mmriem.core.pipeline.settings.Settings`.
        effort: of fits to an ordinary checkpoint, likewise.
        integers: what training does with the integer states of a lattice: ``frozen``, it moves the steps, or
            ``straight_through``, it moves the integers.
        materialize: False: the weights of ``nn.Linear`` and ``nn.Conv2d`` are never made as a whole, but applied
            block by block, see :mod:`mmriem.core.live.matrix_free`.
        include: glob patterns on state-dict keys.
        exclude: of those, which stay as they are.

    Returns:
        Keys of the weights that were replaced.

    Raises:
        RiemError: a pattern matches nothing, the representation is not known, or a number is out of range.

    >>> make_live(nn.Sequential(nn.Conv2d(16, 32, 3), nn.ReLU()), representation='bilinear', bits=6)
    ['0.weight']
    """
    fitter = get_representation(representation).fitter_with(state_bits=state_bits, effort=effort)
    rate = bits_per_weight(ratio, bits)
    if state_bits and not STATE_BITS[0] <= state_bits <= STATE_BITS[1]:
        raise RiemError(f'state_bits: expected 0 (by the ratio) or 2 to 8, found {state_bits}')
    if not 0 < effort < math.inf:
        raise RiemError(f'effort: expected a number above 0, found {effort}')
    if integers not in INTEGERS:
        raise RiemError(f'integers: expected one of {", ".join(INTEGERS)}, found {integers!r}')
    owners = {owner.name: owner for owner in parameter_owners(model)}
    views = find_weights(model, include, exclude)
    for view in views:
        configuration = fitter.configure(view.matrix_shape, rate * math.prod(view.shape), view.kernel_size)
        first, *others = (owners[name] for name in (view.name, *view.aliases))
        blockwise = first.attribute == 'weight' and isinstance(first.module, (nn.Linear, nn.Conv2d))
        states = WeightStates(view, fitter, configuration, integers, materialize or not blockwise)
        hold_states(first.module, first.attribute, states)
        for other in others:
            if other.module._parameters[other.attribute] is not None:  # so it is where the whole module is shared
                attach(other.module, other.attribute, states)
    return [view.name for view in views]


def bits_per_weight(ratio: float | None, bits: float | None) -> float:
    if ratio is not None and bits is not None:
        raise RiemError(f'ratio, bits: expected one of them, found ratio {ratio} and bits {bits}')
    if bits is not None:
        if not 0 < bits <= 32:
            raise RiemError(f'bits: expected a number above 0 and at most 32, found {bits}')
        return bits
    ratio = DEFAULT_RATIO if ratio is None else ratio
    if not 0 < ratio <= 1:
        raise RiemError(f'ratio: expected a number above 0 and at most 1, found {ratio}')
    return 32 * ratio
