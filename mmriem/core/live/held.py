"""What a live module holds in place of a weight, whatever it is made from."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from ..errors import RiemError
from ..representations.base import Encoded


class HeldWeight(nn.Module):
    """In place of one weight; calling it gives the weight, or what stands for one that is not made."""

    @abstractmethod
    def made(self) -> Tensor:
        """The weight in the shape of the parameter."""

    @abstractmethod
    def encoded(self) -> Encoded | None:
        """The matrix as a file holds it; None for a weight that is held dense."""

    @abstractmethod
    def states(self) -> dict[str, Tensor]:
        """What the state dict of the module has in place of the weight, by name."""

    @abstractmethod
    def take(self, key: str, tensor: Tensor) -> None:
        """Hold the weight of a checkpoint.

        Raises:
            RiemError: it cannot be held.
        """

    @abstractmethod
    def reset(self, states: Mapping[str, Tensor]) -> None:
        """Hold these states, of names as in :meth:`states`."""

    @abstractmethod
    def _expected(self) -> Iterable[str]:
        """Names of the states that a state dict is to have."""

    @abstractmethod
    def _load(self, found: Mapping[str, Tensor]) -> None:
        """Hold the states that a state dict has.

        Raises:
            RiemError: they are no weight of this kind.
        """

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        found = {key[len(prefix) :]: value for key, value in state_dict.items() if key.startswith(prefix)}
        if not found:
            missing_keys.extend(prefix + name for name in self._expected())
            return
        try:
            self._load(found)
        except RiemError as error:
            error_msgs.append(f'{prefix[:-1]}: {error}')

    @property
    @abstractmethod
    def is_trained(self) -> bool:
        """Whether the weight is to have gradients once it is an ordinary parameter."""

    def begin_draft(self) -> bool:
        """From now on give out one dense weight that may be written to; False where that is so, or cannot be."""
        return False

    def end_draft(self) -> None:
        """Hold what was written."""

    def draft(self) -> Tensor | None:
        """The weight while writes to it count; None otherwise."""
        return None
