"""States that are held in few bytes: beside float ones that are the same, or alone while nothing trains them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from ..representations.blocks import State

Versions = tuple[int, ...]
"""Numbers that change with every write to the float states."""


class Packing:
    """The packed states of a weight, and of which version of its float states they are.

    Attributes:
        states: by name; None where there are none.
        alone: whether they are held in place of the float states, which are empty then.
    """

    def __init__(self) -> None:
        self.states: dict[str, State] | None = None
        self.alone = False
        self._versions: Versions = ()

    def hold(self, states: Mapping[str, State] | None, device: torch.device, versions: Versions) -> None:
        """Packed states of float states that are of that version; None where those have none."""
        self.states = None if states is None else _on_device(states, device)
        self._versions = versions

    def renew(self, versions: Versions) -> None:
        """The same float states have another version now."""
        self._versions = versions

    def is_of(self, versions: Versions) -> bool:
        """Whether there are packed states, and of that version."""
        return self.states is not None and self._versions == versions

    def unpacked(self, names: Iterable[str]) -> dict[str, Tensor]:
        """Float states, the same bits as those that were packed."""
        if self.states is None:
            raise ValueError('nothing is packed')
        return {name: self.states[name][...].float() for name in names}

    def move(self, device: torch.device, versions: Versions, before: Versions) -> None:
        """To another device, with the float states, which had the version ``before``."""
        if self.states is not None:
            current = self._versions == before
            self.states = _on_device(self.states, device)
            self._versions = versions if current else ()


def _on_device(states: Mapping[str, State], device: torch.device) -> dict[str, State]:
    return {name: state.to(device) for name, state in states.items()}
