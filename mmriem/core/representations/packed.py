"""An encoded matrix as the bytes that it has in a file."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .base import Encoded
from .registry import parsed


class Packed(Encoded):
    """An encoded matrix of which only the payload is here: it is parsed when it is needed, which may be never."""

    def __init__(
        self, name: str, shape: tuple[int, int], symbols: int, settings: dict[str, Any], payload: bytes
    ) -> None:
        self.name, self.shape = name, shape
        self._symbols, self._settings, self._payload = symbols, settings, payload

    @property
    def symbols(self) -> int:
        return self._symbols

    def settings_json(self) -> dict[str, Any]:
        return self._settings

    def to_payload(self) -> bytes:
        return self._payload

    def decode(self) -> Tensor:
        return parsed(self).decode()
