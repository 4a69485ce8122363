"""How to compress: a budget, the weights that it concerns, options of their fit, and corrections afterwards."""

from __future__ import annotations

import math
import numbers
from dataclasses import dataclass, field, fields, replace
from typing import Any

from ..budget.plan import target_bits
from ..errors import RiemError, brief
from ..representations.base import Fitter, Stepper
from ..representations.registry import Representation, get_representation, representation_names
from ..weights.views import DEFAULT_MIN_NUMEL

__all__ = ['Budget', 'Corrections', 'FitOptions', 'Selection', 'Settings']


@dataclass(frozen=True)
class Budget:
    """What the file may take, or do; one of the four, or none for the default.

    Attributes:
        ratio: size of the file over the fp32 state dict; or
        bits: bits of the file for each represented weight; or
        size: bytes of the file; or
        tolerance: predicted relative error of the network's outputs, where images can be run.
    """

    ratio: float | None = None
    bits: float | None = None
    size: int | None = None
    tolerance: float | None = None

    def __post_init__(self) -> None:
        given = {key: value for key, value in vars(self).items() if value is not None}
        if len(given) > 1:
            raise RiemError(f'budget: expected one of {", ".join(vars(self))}, found {" and ".join(given)}; give one')

    @property
    def is_given(self) -> bool:
        """Whether it is one of the four."""
        return any(value is not None for value in vars(self).values())

    def file_bits(self, numel: int, elements: int) -> float:
        """Bits of the file, of a ratio, bits or a size.

        Args:
            numel: elements of the whole state dict.
            elements: elements of the weights to represent.
        """
        return target_bits(numel, elements, self.ratio, self.bits, self.size)


@dataclass(frozen=True)
class Selection:
    """Which weights are represented; the others stay dense.

    Attributes:
        include, exclude: glob patterns on state-dict keys.
        min_numel: weights with fewer elements stay dense.
    """

    include: tuple[str, ...] = ('*',)
    exclude: tuple[str, ...] = ()
    min_numel: int = DEFAULT_MIN_NUMEL


@dataclass(frozen=True)
class FitOptions:
    """How states are fitted.

    Attributes:
        representation: its name.
        state_bits: bits of a quantised state; 0 lets each weight's budget decide. The paper has 8.
        shifts: relative vectors of ``sigmoid``; the paper has 6.
        dmu: inner dimension ``Dmu`` of its metric; 0: to match ``Dq``.
        seeds: random starts of a fit, culled early.
        seed: the first of them, and of everything else that is random.
        effort: scales the number of optimisation steps.
        trellis: whether the integers of ``lattice`` are sought along the paths of a trellis: smaller files at the same
            accuracy, but whoever wants to train integers wants them without.
    """

    representation: str = 'lattice'
    state_bits: int = 0
    shifts: int = 6
    dmu: int = 0
    seeds: int = 1
    seed: int = 0
    effort: float = 1.0
    trellis: bool = True

    def __post_init__(self) -> None:
        get_representation(self.representation)
        if self.state_bits and not 2 <= self.state_bits <= 8:
            raise RiemError(f'state bits: expected 0 (by the budget) or 2 to 8, found {self.state_bits}')
        if not 1 <= self.shifts <= 64:
            raise RiemError(f'shifts: expected 1 to 64, found {self.shifts}')
        if not 0 <= self.dmu <= 4096:
            raise RiemError(f'dmu: expected 0 (to match Dq) or 1 to 4096, found {self.dmu}')
        if self.seeds < 1:
            raise RiemError(f'seeds: expected at least 1, found {self.seeds}')
        if not 0 <= self.seed < 1 << 63:
            raise RiemError(f'seed: expected 0 to {(1 << 63) - 1}, found {self.seed}')
        if not 0 < self.effort < math.inf:
            raise RiemError(f'effort: expected a number above 0, found {self.effort}')

    @property
    def kind(self) -> Representation:
        """The representation itself."""
        return get_representation(self.representation)

    @property
    def fitter(self) -> Fitter[Any, Any]:
        """What fits a weight within its own bits, with those of the options that it has."""
        return self.kind.fitter_with(**vars(self))

    @property
    def stepper(self) -> Stepper:
        """What poses problems with a step, likewise.

        Raises:
            RiemError: the representation has no steps.
        """
        stepper = self.kind.stepper_with(**vars(self))
        if stepper is None:
            raise RiemError(f'representation: expected one with steps, {_with_steps()}, found {self.representation!r}')
        return stepper


@dataclass(frozen=True)
class Corrections:
    """What is done to norms and biases afterwards; all of it needs images.

    Attributes:
        recalibration: whether they are set so that activations have the statistics of the original's.
        tuning: steps of training them on other images after that; 0: none. None: some where no budget is given and
            images are small.
    """

    recalibration: bool = True
    tuning: int | None = None

    def __post_init__(self) -> None:
        if (self.tuning or 0) < 0:
            raise RiemError(f'tuning: expected 0 (none) or a number of steps, found {self.tuning}')


def _with_steps() -> str:
    """Names of the representations that have steps."""
    return ' or '.join(name for name in representation_names() if get_representation(name).stepper)


_PARTS = {'budget': Budget, 'selection': Selection, 'fit': FitOptions, 'corrections': Corrections}
_PART_OF = {option.name: part for part, cls in _PARTS.items() for option in fields(cls)}
_RECORDED = (
    *('representation', 'ratio', 'bits', 'size', 'tolerance', 'include', 'exclude', 'min_numel', 'state_bits'),
    *('shifts', 'dmu', 'seeds', 'seed', 'effort', 'trellis', 'recalibration', 'tuning'),
)
"""Options in the order in which files hold them."""


@dataclass(frozen=True)
class Settings:
    """How to compress. Each stage of the pipeline takes the part that it needs.

    >>> Settings.of(bits=2.0, exclude=('head.*',)).budget
    Budget(ratio=None, bits=2.0, size=None, tolerance=None)
    """

    budget: Budget = field(default_factory=Budget)
    selection: Selection = field(default_factory=Selection)
    fit: FitOptions = field(default_factory=FitOptions)
    corrections: Corrections = field(default_factory=Corrections)

    def __post_init__(self) -> None:
        tolerance = self.budget.tolerance
        if tolerance is not None and not (self.fit.kind.stepper and 0 < tolerance < math.inf):
            raise RiemError(
                f'tolerance: expected a number above 0 with {_with_steps()}, found {tolerance} '
                f'with {self.fit.representation}'
            )

    @staticmethod
    def names() -> tuple[str, ...]:
        """Every option that :meth:`of` takes."""
        return _RECORDED

    @classmethod
    def of(cls, **options: Any) -> Settings:
        """Settings from the options of all parts, by their names.

        Raises:
            RiemError: an option that is not known, or a value that is of another kind or out of range.
        """
        unknown = [name for name in options if name not in _PART_OF]
        if unknown:
            raise RiemError(f'settings: expected options among {", ".join(_RECORDED)}, found {", ".join(unknown)}')
        for name, value in options.items():
            _require_kind(name, value)
        return cls(
            **{
                part: kind(**{name: value for name, value in options.items() if _PART_OF[name] == part})
                for part, kind in _PARTS.items()
            }
        )

    def options(self) -> dict[str, Any]:
        """The inverse of :meth:`of`."""
        return {name: getattr(getattr(self, _PART_OF[name]), name) for name in _RECORDED}

    def changed(self, **options: Any) -> Settings:
        """The same but for these options."""
        parts = {
            part: replace(getattr(self, part), **{n: v for n, v in options.items() if _PART_OF[n] == part})
            for part in _PARTS
        }
        return Settings(**parts)

    def recorded(self) -> dict[str, Any]:
        """As files hold them: JSON-able, without what was not given."""
        values = {name: list(value) if isinstance(value, tuple) else value for name, value in self.options().items()}
        return {name: value for name, value in values.items() if value is not None}


_NUMBER = 'a number'
_WHOLE = 'a whole number'
_PATTERNS = 'a list of patterns'
_FLAG = 'True or False'
_TEXT = 'a name'
_KINDS = {
    **dict.fromkeys(('ratio', 'bits', 'size', 'tolerance', 'effort'), _NUMBER),
    **dict.fromkeys(('min_numel', 'state_bits', 'shifts', 'dmu', 'seeds', 'seed', 'tuning'), _WHOLE),
    **dict.fromkeys(('include', 'exclude'), _PATTERNS),
    **dict.fromkeys(('trellis', 'recalibration'), _FLAG),
    'representation': _TEXT,
}
_MAY_BE_NONE = ('ratio', 'bits', 'size', 'tolerance', 'tuning')


def _require_kind(name: str, value: object) -> None:
    """Raise a RiemError where an option is not of its kind: numbers are easily given as text."""
    kind = _KINDS[name]
    if value is None and name in _MAY_BE_NONE:
        return
    is_flag = isinstance(value, bool)
    is_right = {
        _NUMBER: isinstance(value, numbers.Real) and not is_flag,
        _WHOLE: isinstance(value, numbers.Integral) and not is_flag,
        _PATTERNS: isinstance(value, (list, tuple)) and all(isinstance(pattern, str) for pattern in value),
        _FLAG: is_flag,
        _TEXT: isinstance(value, str),
    }[kind]
    if not is_right:
        remedy = f'; give [{value!r}]' if kind == _PATTERNS and isinstance(value, str) else ''
        unit = ' of bytes' if name == 'size' else ''
        raise RiemError(f'{name}: expected {kind}{unit}, found {brief(value)}{remedy}')
