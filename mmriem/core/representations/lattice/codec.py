"""Matrices of integers as a file holds them: ``W_ij = s_i * t_j * z_ij``, steps on a grid of exponents."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from ...coding import entropy, streams
from ...coding.exact import powers_of_two
from ...errors import RiemError
from ..base import Codec, Demand
from ..blocks import spans
from . import native
from .exponents import OCTAVE, half_way, pack_exponents, unpack_exponents
from .settings import NAME, LatticeSettings

MANY = 1 << 17
"""Least integers of a matrix that is coded in ``LANES`` streams, which cost it next to nothing."""
DECODED = 1 << 16
"""Weights that are computed at a time, in float64, so that these stay in the cache."""
MOST_BYTES = 8
"""Bytes of a coded integer, however unlikely it is."""
_HEADER = struct.Struct('<fII')  # step, bytes of the row exponents, bytes of the column exponents
LEAST_BITS = 8 * (_HEADER.size + 8)
"""Fewest bits that a payload is planned with: the header, and next to nothing for integers."""


class Lattice(Codec):
    """Integers, a step, and exponents of row and column steps.

    Attributes:
        codes: the integers ``(out, in)``, int32, or int8 where they are small.
        step: a float32 number.
        row_exponents, column_exponents: int32 ``(out,)`` and ``(in,)``.
        settings: how they are coded.
    """

    name = NAME
    settings_type = LatticeSettings

    def __init__(
        self,
        codes: np.ndarray,
        step: float,
        row_exponents: np.ndarray,
        column_exponents: np.ndarray,
        settings: LatticeSettings,
        payload: bytes | None = None,
    ) -> None:
        self.shape = (codes.shape[0], codes.shape[1])
        self.codes, self.row_exponents, self.column_exponents = codes, row_exponents, column_exponents
        self.step = float(np.float32(step))
        self._settings, self._payload = settings, payload

    @classmethod
    def of(
        cls,
        codes: np.ndarray,
        step: float,
        row_exponents: np.ndarray,
        column_exponents: np.ndarray,
        kernel_size: int = 1,
        octave: int = OCTAVE,
        trellis: bool = False,
    ) -> Lattice:
        """To be coded in as many streams as suit the number of integers."""
        lanes = streams.LANES if codes.size >= MANY else 1
        return cls(codes, step, row_exponents, column_exponents, LatticeSettings(kernel_size, octave, lanes, trellis))

    @property
    def symbols(self) -> int:
        return self.codes.size

    @property
    def settings(self) -> LatticeSettings:
        return self._settings

    def to_payload(self) -> bytes:
        if self._payload is None:
            rows, columns = pack_exponents(self.row_exponents), pack_exponents(self.column_exponents)
            header, how = _HEADER.pack(self.step, len(rows), len(columns)), self._settings
            integers = entropy.encode(self.codes, how.kernel_size, how.lanes, how.trellis)
            self._payload = header + rows + columns + integers
        return self._payload

    @classmethod
    def demand(cls, shape: tuple[int, int], settings: LatticeSettings) -> Demand:
        if shape[1] % settings.kernel_size:
            raise RiemError(
                f'lattice: expected a divisor of {shape[1]} columns as period, found {settings.kernel_size}'
            )
        symbols = shape[0] * shape[1]
        return Demand(symbols, _HEADER.size + 1, _HEADER.size + MOST_BYTES * (symbols + sum(shape) + streams.LANES * 8))

    @classmethod
    def from_payload(cls, shape: tuple[int, int], settings: LatticeSettings, payload: bytes) -> Lattice:
        cls.demand(shape, settings)
        if len(payload) < _HEADER.size:
            raise RiemError(f'lattice: expected at least {_HEADER.size} bytes, found {len(payload)}')
        step, n_rows, n_columns = _HEADER.unpack_from(payload)
        if not (math.isfinite(step) and step > 0):
            raise RiemError(f'lattice: expected a finite step above 0, found {step}')
        first, second = _HEADER.size + n_rows, _HEADER.size + n_rows + n_columns
        if second > len(payload):
            raise RiemError(f'lattice: expected {second} bytes and more, found {len(payload)}')
        return cls(
            entropy.decode(payload[second:], shape, settings.kernel_size, settings.lanes, settings.trellis),
            step,
            unpack_exponents(payload[_HEADER.size : first], shape[0], settings.octave),
            unpack_exponents(payload[first:second], shape[1], settings.octave),
            settings,
            bytes(payload),
        )

    def decode(self) -> Tensor:
        return dequantised(*self.steps(), self.codes)

    def decode_rows(self, most: int) -> Iterator[Tensor]:
        rows, columns = self.steps()
        for part in spans(0, len(rows), max(1, most // len(columns))):
            yield dequantised(rows[part], columns, self.codes[part])

    def steps(self) -> tuple[np.ndarray, np.ndarray]:
        """Those of rows, ``(out,)``, the common one included, and of columns, ``(in,)``, float64."""
        rows, columns = self._scales()
        return self.step * rows, columns

    def states(self) -> dict[str, Tensor]:
        """The common step is shared out to rows and columns: training moves both by about the same share."""
        shared, (rows, columns) = half_way(self.step), self._scales()
        return {
            'z': torch.from_numpy(self.codes.astype(np.float32)),
            'row': torch.from_numpy((self.step / shared * rows).astype(np.float32)),
            'column': torch.from_numpy((shared * columns).astype(np.float32)),
        }

    def _scales(self) -> tuple[np.ndarray, np.ndarray]:
        """Of rows and columns, without the common step, float64."""
        octave = self._settings.octave
        return powers_of_two(self.row_exponents, octave), powers_of_two(self.column_exponents, octave)


def dequantised(rows: np.ndarray, columns: np.ndarray, codes: np.ndarray) -> Tensor:
    """``rows[i] * columns[j] * codes[i, j]`` in float64, each rounded once: float32 ``(out, in)``.

    Args:
        rows: float64 ``(out,)``.
        columns: float64 ``(in,)``.
        codes: int8 or int32 ``(out, in)``.
    """
    weight = np.empty(codes.shape, np.float32)
    if native.module is not None and codes.dtype == np.int8:
        native.module.dequantise(weight, rows, columns, codes)
        return torch.from_numpy(weight)
    height = max(1, DECODED // codes.shape[1])
    with np.errstate(over='ignore'):  # the container refuses what is not finite
        for part in spans(0, len(weight), height):
            weight[part] = rows[part, None] * columns * codes[part]
    return torch.from_numpy(weight)
