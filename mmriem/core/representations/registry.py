"""The representations that there are, by name."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, TypeVar

from ..errors import RiemError, brief
from .base import Codec, Costs, Encoded, Fitter, LiveStates, Stepper

T = TypeVar('T')
_REPRESENTATIONS: dict[str, Representation] = {}


@dataclass(frozen=True, eq=False)
class Representation:
    """One way to regenerate weights from states: what each who asks is given, see :mod:`.base`.

    Attributes:
        codec: class of the encoded matrices.
        live: the states as tensors.
        costs: of fits and products.
        fitter: class of what fits a weight within its own bits.
        stepper: class of what poses problems with a step; None where there are no steps.
    """

    codec: type[Codec]
    live: LiveStates[Any, Any]
    costs: Costs[Any]
    fitter: type[Fitter[Any, Any]]
    stepper: type[Stepper] | None = None

    @property
    def name(self) -> str:
        """By which files and commands know it."""
        return self.codec.name

    @property
    def options(self) -> frozenset[str]:
        """Names of the options of its fitter and its stepper."""
        classes = [self.fitter] if self.stepper is None else [self.fitter, self.stepper]
        return frozenset(name for cls in classes for name in _options(cls))

    def fitter_with(self, **options: Any) -> Fitter[Any, Any]:
        """A fitter with those of the options that it has."""
        return _with(self.fitter, options)

    def stepper_with(self, **options: Any) -> Stepper | None:
        """A stepper likewise; None where there are no steps."""
        return None if self.stepper is None else _with(self.stepper, options)

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        """Copied and pickled by its name: there is one of each."""
        return get_representation, (self.name,)


def _options(cls: Any) -> list[str]:
    return [option.name for option in fields(cls)]


def _with(cls: type[T], options: dict[str, Any]) -> T:
    known = _options(cls)
    return cls(**{name: value for name, value in options.items() if name in known})


def register(representation: Representation) -> Representation:
    """Make a representation known by its name; returns it.

    Raises:
        RiemError: another one has that name, or states of the same names.
    """
    for other in _REPRESENTATIONS.values():
        if other.name == representation.name:
            raise RiemError(f'representation {other.name!r}: expected a name that is not taken; choose another one')
        if set(other.live.state_names) == set(representation.live.state_names):
            raise RiemError(
                f'representation {representation.name!r}: expected other state names than those of {other.name!r}, '
                f'found {", ".join(other.live.state_names)}; rename a state'
            )
    _REPRESENTATIONS[representation.name] = representation
    return representation


def get_representation(name: str) -> Representation:
    """The representation of that name; :class:`RiemError` where there is none."""
    if name not in _REPRESENTATIONS:
        known = ', '.join(representation_names())
        raise RiemError(f'representation {brief(name)} is not known, expected one of {known}')
    return _REPRESENTATIONS[name]


def representation_names() -> list[str]:
    """Names of all registered representations, sorted."""
    return sorted(_REPRESENTATIONS)


def parsed(encoded: Encoded) -> Codec:
    """The matrix with its states: itself, or from its payload.

    Raises:
        RiemError: there is no such representation, or the payload is not one of its.
    """
    if isinstance(encoded, Codec):
        return encoded
    codec = get_representation(encoded.name).codec
    return codec.from_record(encoded.shape, encoded.settings_json(), encoded.to_payload())
