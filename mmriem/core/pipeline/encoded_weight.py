"""A weight that is done: what a journal keeps of it, and what processes send one another."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from ..execution.workers import join, split
from ..file.archive import WeightRecord
from ..file.dense import store
from ..representations.base import Encoded
from ..representations.packed import Packed
from ..weights.views import WeightView


@dataclass(frozen=True, eq=False)
class EncodedWeight:
    """One weight, encoded.

    Attributes:
        encoded: its matrix; None where it stays dense.
        distortion: in units of the pullback metric; None where that was not asked for.
        seconds: CPU time that it took.
        digest: SHA-256 of the decoded weight in hexadecimal; empty while it was not decoded.
        relative_error: mean error over the standard deviation of the weight.
        snr_db: signal to noise; None where there is no noise or no signal.
    """

    encoded: Encoded | None
    distortion: float | None = None
    seconds: float = 0.0
    digest: str = ''
    relative_error: float = 0.0
    snr_db: float | None = None

    @classmethod
    def whole(
        cls, view: WeightView, tensor: Tensor, encoded: Encoded | None, distortion: float | None, seconds: float
    ) -> EncodedWeight:
        """With the digest of the decoded weight and its errors."""
        if encoded is None:
            return cls(None, distortion, seconds, '', *_errors(tensor, store(view.name, tensor).decode()))
        record, decoded = WeightRecord.decoded(view, encoded)
        return cls(encoded, distortion, seconds, record.decoded_sha256.hex(), *_errors(tensor, decoded))

    def record(self, view: WeightView) -> WeightRecord | None:
        """What the file holds of it; None where it stays dense."""
        if self.encoded is None:
            return None
        return WeightRecord(view, self.encoded, bytes.fromhex(self.digest))

    def bits(self, view: WeightView, tensor: Tensor) -> int:
        """What it takes in the file; ``tensor`` is the original, which is there where it stays dense."""
        if self.encoded is not None:
            return self.encoded.payload_bits()
        return 8 * store(view.name, tensor).layout.n_bytes

    def to_bytes(self) -> bytes:
        """Everything, payload included."""
        fields = {key: value for key, value in vars(self).items() if key != 'encoded'}
        if self.encoded is None:
            return join([json.dumps(fields).encode()])
        kind = {
            'name': self.encoded.name,
            'shape': self.encoded.shape,
            'symbols': self.encoded.symbols,
            'settings': self.encoded.settings_json(),
        }
        return join([json.dumps(fields).encode(), json.dumps(kind).encode(), self.encoded.to_payload()])

    @classmethod
    def from_bytes(cls, data: bytes) -> EncodedWeight:
        """Inverse of :meth:`to_bytes`; the representation is packed."""
        fields, *kind = split(data)
        encoded = None
        if kind:
            known = json.loads(kind[0])
            encoded = Packed(**{**known, 'shape': tuple(known['shape'])}, payload=kind[1])
        return cls(encoded, **json.loads(fields))


EncodedWeights = dict[str, EncodedWeight]
"""Encoded weights by name."""


def average_bits(weights: EncodedWeights, views: Sequence[WeightView], state_dict: Mapping[str, Tensor]) -> float:
    """Bits in the file for each element of these weights."""
    elements = sum(math.prod(view.shape) for view in views)
    return sum(weights[view.name].bits(view, state_dict[view.name]) for view in views) / elements


def _errors(tensor: Tensor, decoded: Tensor) -> tuple[float, float | None]:
    weight = tensor.double()
    error = weight - decoded.double()
    spread, power = float(weight.std(unbiased=False)), float(weight.square().sum())
    noise = float(error.square().sum())
    relative = float(error.abs().mean()) / spread if spread else 0.0
    return relative, 10 * math.log10(power / noise) if noise and power else None
