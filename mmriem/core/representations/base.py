"""What every representation of a weight matrix offers, and the registry of representations."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, Protocol

from torch import Tensor

from ..errors import RiemError, brief
from ..execution.tasks import Progress
from .blocks import Block, Factor, State

FLOAT_BITS = 32
_REPRESENTATIONS: dict[str, type[Representation]] = {}


class Work(NamedTuple):
    """Operations, each a multiply-add of two numbers that have so many bits, or as much."""

    count: int
    bits: tuple[int, int]


class Demand(NamedTuple):
    """What reading a payload and regenerating its matrix takes, as far as shape and settings tell.

    Attributes:
        symbols: integers in the payload.
        least, most: bytes of the payload.
        memory: bytes beside the states and the matrix, at a time.
        nanoseconds: of one core, beyond the few that each element of a matrix takes anyway.
    """

    symbols: int
    least: int
    most: int
    memory: int = 0
    nanoseconds: int = 0


class StepProblem(Protocol):
    """A weight matrix with its metric, which is solved at any step."""

    @property
    def spread(self) -> float:
        """Standard deviation of the weights, or what stands for it."""

    @property
    def log_sensitivity(self) -> float:
        """Natural logarithm of the distortion that a unit error of one weight does, on average."""

    def solve(self, step: float) -> tuple[Representation, float]:
        """The states at that step, and their distortion in units of the metric."""


class Representation(ABC):
    """An encoded weight matrix ``W`` of shape ``(out, in)``: quantised states, immutable.

    A representation is one module that defines one subclass, decorated with :func:`register`.
    """

    name: ClassVar[str]
    state_names: ClassVar[tuple[str, ...]]
    """Names of the states, the keys of :meth:`states`."""
    integer_states: ClassVar[tuple[str, ...]] = ()
    """Names of those states that are integers."""
    has_steps: ClassVar[bool] = False
    """Whether a weight is solved at any step by :meth:`problem`, so that one scale of all steps meets a budget; else
    each weight is fitted to a budget of its own."""
    shape: tuple[int, int]

    @classmethod
    @abstractmethod
    def configure(cls, shape: tuple[int, int], bits: float, **options: Any) -> dict[str, Any] | None:
        """Settings of the largest configuration whose payload has at most ``bits`` bits.

        Returns None where not even the smallest one fits. ``options`` fix single settings by name.
        """

    @classmethod
    @abstractmethod
    def planned_bits(cls, shape: tuple[int, int], settings: dict[str, Any]) -> int:
        """The most bits that the payload of a fit with these settings of :meth:`configure` will have."""

    @classmethod
    @abstractmethod
    def fit(
        cls,
        weight: Tensor,
        settings: dict[str, Any],
        *,
        input_metric: Tensor | None = None,
        output_weights: Tensor | None = None,
        seed: int = 0,
        seeds: int = 1,
        effort: float = 1.0,
        progress: Progress | None = None,
    ) -> Representation:
        """Fit the states to ``weight``, minimising ``sum_i g_i (w_i - w'_i)^T A (w_i - w'_i)``.

        Args:
            weight: ``(out, in)``, any floating dtype, finite. Its device is where the fit runs.
            settings: as made by :meth:`configure`.
            input_metric: ``A``, symmetric positive semi-definite ``(in, in)``; None is the identity.
            output_weights: ``g``, non-negative ``(out,)``; None is all ones.
            seed: the first random start; the same seed gives the same bytes.
            seeds: number of random starts, the worse ones culled early. Closed-form fits have one start.
            effort: scales the number of optimisation steps.
            progress: called with the share that is done.
        """

    @classmethod
    def problem(
        cls,
        weight: Tensor,
        metric: Sequence[Tensor] | None,
        output_weights: Tensor | None,
        kernel_size: int,
        trellis: bool,
    ) -> StepProblem:
        """What is solved at any step, where the representation has steps.

        Args:
            weight: ``(out, in)``.
            metric: ``A`` as diagonal blocks over consecutive columns, ``(groups, b, b)`` each; None is the identity.
            output_weights: ``g``, ``(out,)``; None is all ones.
            kernel_size: neighbouring columns that belong to one input channel.
            trellis: whether integers are sought along the paths of a trellis.
        """
        raise NotImplementedError(f'{cls.name}: has no steps')

    @classmethod
    def useful_threads(cls, threads: int, trellis: bool) -> int:
        """How many of so many threads make :meth:`StepProblem.solve` faster."""
        return threads

    @classmethod
    def fit_seconds(cls, shape: tuple[int, int], widths: Sequence[int]) -> float:
        """Predicted CPU seconds of a weight: by these, weights are shared out to processes.

        Measured on a core of an AMD EPYC; another one only scales them.

        Args:
            shape: ``(out, in)``.
            widths: of the blocks of its metric.
        """
        return 1e-4 * shape[0] * shape[1]

    @property
    @abstractmethod
    def symbols(self) -> int:
        """Number of integers in the payload."""

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """JSON-able settings; with :attr:`shape` they suffice to parse the payload."""

    @abstractmethod
    def to_payload(self) -> bytes:
        """The states as bytes."""

    @classmethod
    @abstractmethod
    def from_payload(cls, shape: tuple[int, int], settings: dict[str, Any], payload: bytes) -> Representation:
        """Inverse of :meth:`to_payload`; raises :class:`RiemError` on any inconsistency."""

    @classmethod
    @abstractmethod
    def demand(cls, shape: tuple[int, int], settings: dict[str, Any]) -> Demand:
        """What :meth:`from_payload` and :meth:`decode` will take, from numbers of a file that nobody vouches for.

        Raises:
            RiemError: the settings make no sense, or not for a matrix of this shape.
        """

    @abstractmethod
    def decode(self) -> Tensor:
        """The dense matrix, ``(out, in)`` float32, bit-identical on every machine."""

    @abstractmethod
    def states(self) -> dict[str, Tensor]:
        """The dequantised float32 states, from which :meth:`regenerate` makes the same matrix."""

    @classmethod
    @abstractmethod
    def from_states(cls, states: dict[str, Tensor], settings: dict[str, Any] | None, period: int = 1) -> Representation:
        """Float states, as training leaves them, quantised again: the inverse of :meth:`states` where that can be.

        Args:
            states: float32, finite, on the CPU.
            settings: of :meth:`configure`: how finely states are quantised, and what for; None: as finely as can be.
            period: the number of taps of a convolution's kernel.
        """

    @classmethod
    @abstractmethod
    def regenerate(cls, states: dict[str, Tensor]) -> Tensor:
        """The matrix ``(out, in)`` from float states, differentiable with respect to each of them."""

    @classmethod
    @abstractmethod
    def random_states(cls, shape: tuple[int, int], settings: dict[str, Any]) -> dict[str, Tensor]:
        """Float states with random values, of the sizes that settings of :meth:`configure` ask for."""

    @classmethod
    @abstractmethod
    def scaled_states(cls, states: dict[str, Tensor], gain: float, shift: float) -> dict[str, Tensor]:
        """States of ``gain * W + shift``; a representation without an offset leaves ``shift`` out."""

    @abstractmethod
    def packed_states(self) -> dict[str, State]:
        """The states of :meth:`states`, held in few bytes; slices of them are what :meth:`blocks` works on."""

    @classmethod
    @abstractmethod
    def pack_states(cls, states: dict[str, Tensor], settings: dict[str, Any]) -> dict[str, State]:
        """Float states of the sizes of :meth:`random_states`, quantised to the nearest level and held likewise."""

    @classmethod
    @abstractmethod
    def blocks(cls, states: Mapping[str, State], most: int, taps: int = 1) -> Iterator[Block]:
        """Consecutive rows of the matrix with their states, of at most ``most`` elements or one row.

        :meth:`regenerate` makes the rows from the states of a block.
        """

    @classmethod
    def factors(cls, grouped: bool = False) -> tuple[Factor, ...]:
        """What a matrix-free product applies one after the other; ``grouped`` asks for a single factor."""
        return (Factor(cls.state_names, cls.rows, cls.blocks, cls.regenerate),)

    @classmethod
    @abstractmethod
    def rows(cls, states: Mapping[str, State]) -> int:
        """Number of rows of the matrix."""

    @classmethod
    @abstractmethod
    def regeneration(cls, shape: tuple[int, int], settings: dict[str, Any]) -> list[Work]:
        """What making the matrix takes, for the settings of :meth:`settings`."""

    @property
    def can_train_integers(self) -> bool:
        """Whether integer states that training has moved are coded as well as these are."""
        return True

    @property
    def product_bits(self) -> int:
        """Bits of a weight in a product, what all weights of a row or column have in common being factored out."""
        return FLOAT_BITS

    def product(self, positions: int, activation_bits: int, grouped: bool = False) -> list[Work]:
        """What the matrix-free product with ``positions`` inputs takes; see :meth:`factors`."""
        dense = Work(positions * self.shape[0] * self.shape[1], (self.product_bits, activation_bits))
        return [*self.regeneration(self.shape, self.settings()), dense]

    def payload_bits(self) -> int:
        """Size of the payload in bits, everything counted."""
        return 8 * len(self.to_payload())


def register(cls: type[Representation]) -> type[Representation]:
    """Class decorator: makes a representation known by its name."""
    _REPRESENTATIONS[cls.name] = cls
    return cls


def get_representation(name: str) -> type[Representation]:
    """The representation of that name; :class:`RiemError` where there is none."""
    if name not in _REPRESENTATIONS:
        raise RiemError(f'representation {name!r} is not known, expected one of {", ".join(representation_names())}')
    return _REPRESENTATIONS[name]


def representation_names() -> list[str]:
    """Names of all registered representations, sorted."""
    return sorted(_REPRESENTATIONS)


def check_weight(weight: Tensor, input_metric: Tensor | None, output_weights: Tensor | None) -> None:
    """Raise :class:`RiemError` unless the arguments of ``fit`` have the shapes and values they must have."""
    if weight.ndim != 2 or 0 in weight.shape:
        raise RiemError(f'a weight matrix has two non-empty dimensions, found shape {tuple(weight.shape)}')
    if not weight.isfinite().all():
        raise RiemError('the weight matrix holds NaN or infinite values; repair the checkpoint first')
    out, inputs = weight.shape
    if input_metric is not None and tuple(input_metric.shape) != (inputs, inputs):
        raise RiemError(f'the input metric has shape {tuple(input_metric.shape)}, expected {(inputs, inputs)}')
    if output_weights is not None and tuple(output_weights.shape) != (out,):
        raise RiemError(f'the output weights have shape {tuple(output_weights.shape)}, expected {(out,)}')
    if input_metric is not None and not (input_metric.isfinite().all() and (input_metric.diagonal() >= 0).all()):
        raise RiemError('the input metric: expected finite values and a non-negative diagonal, found others')
    if output_weights is not None and not (output_weights.isfinite() & (output_weights >= 0)).all():
        raise RiemError('the output weights: expected finite non-negative values, found others')


def check_settings(name: str, settings: dict[str, Any], bounds: dict[str, tuple[int, int]]) -> None:
    """Raise :class:`RiemError` unless ``settings`` has exactly the integer keys of ``bounds``, within them."""
    if not isinstance(settings, dict) or set(settings) != set(bounds):
        found = list(settings) if isinstance(settings, dict) else settings
        raise RiemError(f'settings of {name!r}: expected the keys {sorted(bounds)}, found {brief(found)}')
    for key, (low, high) in bounds.items():
        value = settings[key]
        if type(value) is not int or not low <= value <= high:
            raise RiemError(
                f'setting {key!r} of {name!r}: expected an integer of {low} to {high}, found {brief(value)}'
            )
