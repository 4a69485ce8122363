"""What a representation of weight matrices consists of: small interfaces, one for each who asks.

* :class:`Codec`: a matrix as a file holds it, and its parts as bytes. The file room knows no more.
* :class:`LiveStates`: states as float tensors, which modules hold, apply and train.
* :class:`Costs`: operations and seconds, for whoever plans or reports.
* :class:`Fitter`: how states are found within a budget of bits for each weight; its fields are its options.
* :class:`Stepper`: how they are found at a step, where one scale of all steps meets the budget of a file.

:class:`mmriem.core.representations.registry.Representation` binds one of each.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, NamedTuple, Protocol, TypeVar

from torch import Tensor

from ..execution.tasks import Progress
from .blocks import Block, Factor, State
from .settings import CodecSettings

FLOAT_BITS = 32
"""Bits of a float32 number."""
E = TypeVar('E', bound='Codec')
"""The codec of a representation."""
C = TypeVar('C')
"""What a fitter has configured, by which a weight is fitted: settings, or a budget that leaves them open."""


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


class Encoded(ABC):
    """A weight matrix ``(out, in)`` as a file holds it; immutable."""

    name: str
    """Name of its representation."""
    shape: tuple[int, int]

    @property
    @abstractmethod
    def symbols(self) -> int:
        """Number of integers in the payload."""

    @abstractmethod
    def settings_json(self) -> dict[str, Any]:
        """Settings as JSON; with :attr:`shape` they suffice to parse the payload."""

    @abstractmethod
    def to_payload(self) -> bytes:
        """The states as bytes."""

    @abstractmethod
    def decode(self) -> Tensor:
        """The dense matrix, ``(out, in)`` float32, bit-identical on every machine."""

    def payload_bits(self) -> int:
        """Size of the payload in bits, everything counted."""
        return 8 * len(self.to_payload())


class Codec(Encoded):
    """An encoded matrix whose quantised states are at hand."""

    settings_type: ClassVar[type[CodecSettings]]

    @property
    @abstractmethod
    def settings(self) -> CodecSettings:
        """Of :attr:`settings_type`."""

    @abstractmethod
    def states(self) -> dict[str, Tensor]:
        """The dequantised float32 states, from which :meth:`LiveStates.regenerate` makes the matrix."""

    def decode_rows(self, most: int) -> Iterator[Tensor]:
        """As :meth:`decode`, in parts of consecutive rows, of about ``most`` elements where one can be made alone."""
        yield self.decode()

    @classmethod
    @abstractmethod
    def from_payload(cls: type[E], shape: tuple[int, int], settings: Any, payload: bytes) -> E:
        """Inverse of :meth:`to_payload`, for settings of :attr:`settings_type`.

        Raises:
            RiemError: settings, shape and payload do not belong together.
        """

    @classmethod
    @abstractmethod
    def demand(cls, shape: tuple[int, int], settings: Any) -> Demand:
        """What :meth:`from_payload` and :meth:`decode` will take, from numbers of a file that nobody vouches for.

        Raises:
            RiemError: the settings do not go with a matrix of this shape.
        """

    @classmethod
    def record_demand(cls, shape: tuple[int, int], settings: object) -> Demand:
        """As :meth:`demand`, for settings as JSON.

        Raises:
            RiemError: the settings are not those of this representation, or as :meth:`demand`.
        """
        return cls.demand(shape, cls.settings_type.from_json(settings))

    @classmethod
    def from_record(cls: type[E], shape: tuple[int, int], settings: object, payload: bytes) -> E:
        """As :meth:`from_payload`, for settings as JSON.

        Raises:
            RiemError: the settings are not those of this representation, or as :meth:`from_payload`.
        """
        return cls.from_payload(shape, cls.settings_type.from_json(settings), payload)

    def settings_json(self) -> dict[str, Any]:
        """As :meth:`Encoded.settings_json`."""
        return self.settings.to_json()


class LiveStates(ABC, Generic[E, C]):
    """Float states of matrices, by name: what modules hold in place of a weight, apply and train."""

    state_names: ClassVar[tuple[str, ...]]
    """Names of the states. No other representation has the same ones."""
    integer_states: ClassVar[tuple[str, ...]] = ()
    """Names of those states that are integers."""

    @abstractmethod
    def from_states(self, states: Mapping[str, Tensor], configuration: C | None, kernel_size: int = 1) -> E:
        """Float states, as training leaves them, quantised again: the inverse of :meth:`Codec.states`, if there is one.

        Args:
            states: float32, finite, on the CPU.
            configuration: how finely states are quantised, and what for; None: as finely as can be.
            kernel_size: neighbouring columns that belong to one input channel.
        """

    @abstractmethod
    def regenerate(self, states: Mapping[str, Tensor]) -> Tensor:
        """The matrix ``(out, in)`` from float states, differentiable with respect to each of them."""

    @abstractmethod
    def random_states(self, shape: tuple[int, int], configuration: C) -> dict[str, Tensor]:
        """Float states with random values, of the sizes that the configuration asks for."""

    @abstractmethod
    def scaled_states(self, states: Mapping[str, Tensor], gain: float, shift: float) -> dict[str, Tensor]:
        """States of ``gain * W + shift``; a representation without an offset leaves ``shift`` out."""

    @abstractmethod
    def packed_states(self, encoded: E) -> dict[str, State]:
        """The states of :meth:`Codec.states`, held in few bytes; slices of them are what :meth:`blocks` works on."""

    @abstractmethod
    def pack_states(self, states: Mapping[str, Tensor], configuration: C) -> dict[str, State]:
        """Float states of the sizes of :meth:`random_states`, quantised to the nearest level and held likewise."""

    @abstractmethod
    def rows(self, states: Mapping[str, State]) -> int:
        """Number of rows of the matrix."""

    @abstractmethod
    def blocks(self, states: Mapping[str, State], most: int, kernel_size: int = 1) -> Iterator[Block]:
        """Consecutive rows of the matrix with their states, of at most ``most`` elements or one row.

        :meth:`regenerate` makes the rows from the states of a block.
        """

    def factors(self, grouped: bool = False) -> tuple[Factor, ...]:
        """What a matrix-free product applies one after the other; ``grouped`` asks for a single factor."""
        return (Factor(self.state_names, self.rows, self.blocks, self.regenerate),)

    def applied_states(self, encoded: E) -> dict[str, State]:
        """What :meth:`applied_factors` make the matrix of, where it is applied alone, never trained.

        They are there while products with the matrix run; in between, its payload is all that is held.
        """
        return self.packed_states(encoded)

    def applied_factors(self, grouped: bool = False) -> tuple[Factor, ...]:
        """As :meth:`factors`, for :meth:`applied_states`."""
        return self.factors(grouped)

    def can_train_integers(self, encoded: E) -> bool:
        """Whether integer states that training has moved are coded as well as these are."""
        return True


@dataclass(frozen=True)
class Work:
    """Operations, each a multiply-add of two numbers that have so many bits, or as much."""

    count: int
    bits: tuple[int, int]


class Costs(ABC, Generic[E]):
    """What matrices take to fit, to make and to apply."""

    def fit_seconds(self, shape: tuple[int, int], widths: Sequence[int]) -> float:
        """Predicted CPU seconds of a weight: by these, weights are shared out to processes.

        Measured on a core of an AMD EPYC; another one only scales them.

        Args:
            shape: ``(out, in)``.
            widths: of the blocks of its metric.
        """
        return 1e-4 * shape[0] * shape[1]

    @abstractmethod
    def regeneration(self, shape: tuple[int, int], settings: Any) -> list[Work]:
        """What making a matrix of these settings takes."""

    def product_bits(self, encoded: E) -> int:
        """Bits of a weight in a product, what all weights of a row or column have in common being factored out."""
        return FLOAT_BITS

    def product(self, encoded: E, positions: int, activation_bits: int, grouped: bool = False) -> list[Work]:
        """What the matrix-free product with ``positions`` inputs takes; see :meth:`LiveStates.factors`."""
        out, inputs = encoded.shape
        dense = Work(positions * out * inputs, (self.product_bits(encoded), activation_bits))
        return [*self.regeneration(encoded.shape, encoded.settings), dense]


class Fitter(ABC, Generic[E, C]):
    """Fits states to weights, each within bits of its own. A subclass is a frozen dataclass: its fields are options.

    Every option has a default, and changes the fit; who calls a fitter by the name of its representation gives it
    those of the options at hand that it has (:meth:`mmriem.core.representations.registry.Representation.fitter_with`).
    """

    name: ClassVar[str]
    """Name of its representation."""

    @abstractmethod
    def configure(
        self, shape: tuple[int, int], bits: float, kernel_size: int = 1, smaller: C | None = None
    ) -> C | None:
        """The largest configuration whose payload has at most ``bits`` bits; None where not even the smallest fits.

        Args:
            shape: ``(out, in)``.
            bits: of the payload.
            kernel_size: neighbouring columns that belong to one input channel.
            smaller: a configuration of this weight for fewer bits, from which this one is to differ in size alone.
        """

    @abstractmethod
    def planned_bits(self, shape: tuple[int, int], configuration: C) -> int:
        """The most bits that the payload of a fit with that configuration will have."""

    @abstractmethod
    def fit(
        self,
        weight: Tensor,
        configuration: C,
        *,
        input_metric: Tensor | None = None,
        output_weights: Tensor | None = None,
        progress: Progress | None = None,
    ) -> E:
        """Fit the states to ``weight``, minimising ``sum_i g_i (w_i - w'_i)^T A (w_i - w'_i)``.

        Args:
            weight: ``(out, in)``, any floating dtype, finite. Its device is where the fit runs.
            configuration: as made by :meth:`configure`.
            input_metric: ``A``, symmetric positive semi-definite ``(in, in)``; None is the identity.
            output_weights: ``g``, non-negative ``(out,)``; None is all ones.
            progress: called with the share that is done.

        Raises:
            RiemError: the configuration is not for a matrix of this shape, or the arguments have other shapes or
                values than they must have.
        """


class StepProblem(Protocol):
    """A weight matrix with its metric, which is solved at any step."""

    @property
    def spread(self) -> float:
        """Standard deviation of the weights, or what stands for it."""

    @property
    def log_sensitivity(self) -> float:
        """Natural logarithm of the distortion that a unit error of one weight does, on average."""

    def solve(self, step: float) -> tuple[Codec, float]:
        """The encoded matrix at that step, and its distortion in units of the metric."""


class Stepper(ABC):
    """Poses weights as problems with a step. A subclass is a frozen dataclass: its fields are options."""

    @abstractmethod
    def problem(
        self, weight: Tensor, metric: Sequence[Tensor] | None, output_weights: Tensor | None, kernel_size: int
    ) -> StepProblem:
        """What is solved at any step.

        Args:
            weight: ``(out, in)``.
            metric: ``A`` as diagonal blocks over consecutive columns, ``(groups, b, b)`` each; None is the identity.
            output_weights: ``g``, ``(out,)``; None is all ones.
            kernel_size: neighbouring columns that belong to one input channel.
        """

    @abstractmethod
    def useful_threads(self, threads: int) -> int:
        """How many of so many threads make :meth:`StepProblem.solve` faster."""
