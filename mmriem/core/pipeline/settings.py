"""How to compress."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..errors import RiemError
from ..representations.base import get_representation
from ..representations.lattice.representation import Lattice
from ..weights.views import DEFAULT_MIN_NUMEL

AUTO = 'auto'
"""The representation of each weight that does least distortion for its bytes."""
DEFAULT_ERRORS = (0.025, 0.05)
"""Predicted relative error of the outputs where no budget is given. The file is as small as the first one allows; where
that is more than ``DEFAULT_SIZE`` of the fp32 weights, it has that size, unless the second one is exceeded."""
DEFAULT_TUNED_ERROR = 0.08
"""In place of the second one where norms and biases are trained afterwards, which takes part of it back."""
DEFAULT_SIZE = 1 / 17
DEFAULT_TUNING = 300
"""Steps of training where no budget is given and images are small, so that it takes seconds or a few minutes."""
SMALL_IMAGE = 1 << 15
"""Pixels of an image that is small."""
DEFAULT_RATIO = 0.19
"""The paper's."""


@dataclass(frozen=True)
class Settings:
    """How to compress.

    Attributes:
        representation: name of the representation, or ``auto``.
        ratio: size of the file over the fp32 state dict; or
        bits: bits of the file for each represented weight; or
        size: bytes of the file; or
        tolerance: predicted relative error of the network's outputs (``lattice`` and ``auto`` alone, and only where
            images can be run). Where none of the four is given, these two go by ``DEFAULT_ERRORS``, and without images,
            as the others do, by ``DEFAULT_RATIO``.
        include, exclude: glob patterns on state-dict keys.
        min_numel: weights with fewer elements stay dense.
        state_bits: bits of a quantised state; 0 lets each weight's budget decide. The paper has 8.
        shifts: relative vectors of ``sigmoid``; the paper has 6.
        dmu: inner dimension ``Dmu`` of its metric; 0: to match ``Dq``.
        seeds: random starts of a fit, culled early.
        seed: the first of them.
        effort: scales the number of optimisation steps.
        trellis: whether the integers of ``lattice`` are sought along the paths of a trellis: smaller files
            at the same accuracy, but whoever wants to train integers wants them without.
        recalibration: whether norms and biases are recalibrated afterwards; that needs images, too.
        tuning: steps of training norms and biases on other images after that; 0: none. That needs images, too. None:
            ``DEFAULT_TUNING`` where there is none of the four and images have at most ``SMALL_IMAGE`` pixels, else 0.
    """

    representation: str = 'lattice'
    ratio: float | None = None
    bits: float | None = None
    size: int | None = None
    tolerance: float | None = None
    include: tuple[str, ...] = ('*',)
    exclude: tuple[str, ...] = ()
    min_numel: int = DEFAULT_MIN_NUMEL
    state_bits: int = 0
    shifts: int = 6
    dmu: int = 0
    seeds: int = 1
    seed: int = 0
    effort: float = 1.0
    trellis: bool = True
    recalibration: bool = True
    tuning: int | None = None

    def __post_init__(self) -> None:
        if self.representation != AUTO:
            get_representation(self.representation)
        budgets = {key: getattr(self, key) for key in ('ratio', 'bits', 'size', 'tolerance')}
        given = {key: value for key, value in budgets.items() if value is not None}
        if len(given) > 1:
            raise RiemError(f'budget: expected one of {", ".join(budgets)}, found {" and ".join(given)}; give one')
        if self.tolerance is not None and not (self.has_lattices and 0 < self.tolerance < math.inf):
            raise RiemError(
                f'tolerance: expected a number above 0 with lattice or auto, found {self.tolerance} with '
                f'{self.representation}'
            )
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
        if (self.tuning or 0) < 0:
            raise RiemError(f'tuning: expected 0 (none) or a number of steps, found {self.tuning}')
        if not 0 < self.effort < math.inf:
            raise RiemError(f'effort: expected a number above 0, found {self.effort}')

    @property
    def state_options(self) -> dict[str, int]:
        """Options of :meth:`Representation.configure`."""
        return {'state_bits': self.state_bits, 'shifts': self.shifts, 'dmu': self.dmu}

    @property
    def has_lattices(self) -> bool:
        """Whether the budget is met by one scale for the lattices of all weights."""
        return self.representation in (Lattice.name, AUTO)

    @property
    def has_budget(self) -> bool:
        """Whether any budget is given."""
        return any(value is not None for value in (self.ratio, self.bits, self.size, self.tolerance))
