"""Weights from states by name, whatever their representation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..errors import RiemError
from ..representations.registry import Representation, get_representation, representation_names

DENSE = 'dense'
"""Name of the one state of a weight that is held as it is, because a file keeps it so or it is too small."""


def representation_of(names: Mapping[str, Any]) -> Representation | None:
    """The representation that has states of these names; None for a dense weight.

    Raises:
        RiemError: no representation has.
    """
    if set(names) == {DENSE}:
        return None
    for name in representation_names():
        kind = get_representation(name)
        if set(kind.live.state_names) == set(names):
            return kind
    known = ', '.join(representation_names())
    raise RiemError(f'expected states of one of {known}, found {", ".join(sorted(names))}')


def with_integers(kind: Representation, states: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The states, those that are integers rounded; the gradient passes as if they were not."""
    return {**states, **{name: _nearest_integers(states[name]) for name in kind.live.integer_states}}


def shape_of(states: Mapping[str, Tensor]) -> tuple[int, ...]:
    """Of the matrix that states regenerate, or of a dense weight.

    Raises:
        RiemError: no representation has states of these names, or they do not belong together.
    """
    kind = representation_of(states)
    if kind is None:
        return tuple(states[DENSE].shape)
    try:
        return tuple(kind.live.regenerate({name: value.float() for name, value in states.items()}).shape)
    except (RuntimeError, ValueError, IndexError, ArithmeticError) as error:
        raise RiemError(f'expected states that belong together, found {sizes_of(states)}') from error


def sizes_of(states: Mapping[str, Tensor]) -> str:
    """Names and shapes, for errors."""
    return ', '.join(f'{name} {tuple(value.shape)}' for name, value in states.items())


def _nearest_integers(values: Tensor) -> Tensor:
    return values + (values.round() - values).detach() if values.requires_grad else values.round()
