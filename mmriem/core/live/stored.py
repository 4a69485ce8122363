"""A weight as a file holds it, in memory: its payload, and what it is parsed by."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..errors import RiemError, brief, naming
from ..file.archive import WeightRecord
from ..representations.base import LiveStates
from ..representations.blocks import Factor, State
from ..representations.packed import Packed
from ..representations.registry import get_representation, parsed
from ..weights.views import WeightView

BAND = 5 << 19
"""Most weights that are made at a time: 10 MiB in float32, a 3x3 one of 512 channels. A row is never divided."""
_LENGTH = struct.Struct('<I')
_KEYS = {'representation': str, 'symbols': int, 'settings': dict, 'decoded': str}


@dataclass(frozen=True, eq=False)
class Stored:
    """One weight.

    Attributes:
        view: the parameter and how it is seen as a matrix.
        data: uint8 ``(bytes,)`` on the CPU, a header and the payload of the file.

    Raises:
        RiemError: the bytes are not those of a weight.
    """

    view: WeightView
    data: Tensor

    def __post_init__(self) -> None:
        get_representation(self._parts[0]['representation'])

    @classmethod
    def of(cls, view: WeightView, record: WeightRecord) -> Stored:
        """The weight of a record, for a parameter that is seen as the same matrix.

        Raises:
            RiemError: it is not.
        """
        encoded = record.encoded
        if encoded.shape != view.matrix_shape:
            raise RiemError(
                f'weight {view.name!r}: expected a matrix {view.matrix_shape}, found {encoded.shape} in the file'
            )
        about = {
            'representation': encoded.name,
            'symbols': encoded.symbols,
            'settings': encoded.settings_json(),
            'decoded': record.decoded_sha256.hex(),
        }
        header = json.dumps(about).encode()
        data = bytearray(_LENGTH.pack(len(header)) + header + encoded.to_payload())
        return cls(view, torch.frombuffer(data, dtype=torch.uint8))

    @property
    def encoded(self) -> Packed:
        """The matrix, not parsed."""
        about, start = self._parts
        payload = self.data[start:].numpy().tobytes()
        return Packed(about['representation'], self.view.matrix_shape, about['symbols'], about['settings'], payload)

    @property
    def live(self) -> LiveStates[Any, Any]:
        """How its states are applied."""
        return get_representation(self._parts[0]['representation']).live

    @property
    def symbols(self) -> int:
        """Number of integers that opening decodes: about the bytes that the states take."""
        return self._parts[0]['symbols']

    def open(self, *, check: bool = True) -> dict[str, State]:
        """The states that its factors apply.

        Args:
            check: compare the decoded weight with the SHA-256 of the one that was compressed.

        Raises:
            RiemError: the payload is damaged, or decodes to other values.
        """
        with naming(f'weight {self.view.name!r}'):
            encoded = parsed(self.encoded)
            if check:
                self._check(encoded.decode_rows(BAND))
            with torch.inference_mode(False):
                return self.live.applied_states(encoded)

    def factors(self, grouped: bool) -> Sequence[Factor]:
        """See :meth:`LiveStates.applied_factors`."""
        return self.live.applied_factors(grouped)

    def made(self, states: Mapping[str, State]) -> Tensor:
        """The parameter in its shape, float32, from opened states."""
        (factor,) = self.factors(grouped=True)
        most = max(1, self.view.matrix_shape[0] * self.view.matrix_shape[1])
        rows = [factor.matrix(block.states) for block in factor.blocks(states, most, self.view.kernel_size)]
        return self.view.from_matrix(rows[0] if len(rows) == 1 else torch.cat(rows))

    def _check(self, parts: Any) -> None:
        if self.view.layout == 'in_first':  # its rows lie apart in the parameter
            parts = [self.view.from_matrix(torch.cat(list(parts))).contiguous()]
        digest = hashlib.sha256()
        for part in parts:
            if not all(end.isfinite() for end in part.to(self.view.dtype).aminmax()):
                raise RiemError('expected finite decoded values, found others; compress the checkpoint again')
            digest.update(part.numpy().astype('<f4', copy=False).data)
        if digest.hexdigest() != self._parts[0]['decoded']:
            raise RiemError(
                'expected the SHA-256 of the decoded values that the file has, found another; compress the '
                'checkpoint again'
            )

    @cached_property
    def _parts(self) -> tuple[dict[str, Any], int]:
        """The header, and where the payload begins."""
        data = self.data.numpy().data
        about: Any = None
        if self.data.dtype == torch.uint8 and self.data.ndim == 1 and len(data) >= _LENGTH.size:
            start = _LENGTH.size + _LENGTH.unpack_from(data)[0]
            with suppress(ValueError):
                about = json.loads(bytes(data[_LENGTH.size : start]))
        if not (isinstance(about, dict) and {key: type(value) for key, value in about.items()} == _KEYS):
            raise RiemError(
                f'weight {self.view.name!r}: expected the bytes of a compressed weight, found others '
                f'({brief(about)}); load the .riem file'
            )
        return about, start
