"""Norms and biases as integers: about 7 bits for each number, instead of the 16 of a half-precision float.

Each vector has a step of its own, a share of the spread of its elements, so that the rounding error is about one
percent of the spread whatever the unit; less where the weights have more than 4 bits. Variances are coded by their
logarithm: what counts is their relative error. The integers of all vectors together are one entropy-coded stream.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from ..coding import entropy
from ..coding.exact import powers_of_two
from ..errors import RiemError
from ..weights.views import _any_match
from .dense import DTYPES, LINEAR, LOGARITHM, DenseLayout


def find_vectors(model: nn.Module, include: Sequence[str] = ('*',), exclude: Sequence[str] = ()) -> dict[str, str]:
    """The norms and biases of a module that may be rounded: state-dict keys with their storage in the file.

    Floating parameters of one dimension, and the running means and variances of BatchNorms.

    Args:
        model: any module.
        include, exclude: shell patterns as for :func:`find_weights`, where they must match; here they need not.

    >>> find_vectors(nn.BatchNorm2d(8), exclude=['bias'])
    {'weight': 'linear', 'running_mean': 'linear', 'running_var': 'logarithm'}
    """
    found = {}
    for prefix, module in model.named_modules(remove_duplicate=False):
        tensors = dict(module.named_parameters(recurse=False, remove_duplicate=False))
        storages = {
            name: LINEAR for name, tensor in tensors.items() if tensor.dim() == 1 and tensor.is_floating_point()
        }
        if isinstance(module, _NormBase) and module.running_mean is not None:
            storages.update(running_mean=LINEAR, running_var=LOGARITHM)
        found.update({f'{prefix}.{name}' if prefix else name: storage for name, storage in storages.items()})
    return {key: storage for key, storage in found.items() if _any_match(key, include) and not _any_match(key, exclude)}


MIN_NUMEL = 8
"""Least elements of a vector that is rounded: shorter ones save next to nothing."""
PRECISION = 20
"""Quarter octaves from the spread of a vector down to its step: a rounding error of 0.9 % of the spread."""
NORM_PRECISION = 14
"""Quarter octaves from the spread of a batch norm's weights or biases down to their step, where mean and variance have
no error (see `.folded_norms`): a rounding error of 2.6 % of the spread."""
LEAST_PRECISION, MOST_PRECISION = 8, 48
"""Bounds of the precision of a vector."""
OCTAVE = 4
"""Steps of vectors for each octave: they are powers of ``2 ** (1 / OCTAVE)``."""
MAX_EXPONENT = 400
MAX_FINENESS = 8
"""Greatest fineness of the logarithms of a vector, whose step is ``2 ** -fineness``."""
LARGEST = 1 << 24
"""Greatest magnitude of an integer that a vector is rounded to."""
SMALLEST_VARIANCE = 2.0**-40
"""Least variance that is stored: smaller ones, zeros too, become this, nothing next to the ``eps`` of a norm."""
_HEADER = struct.Struct('<II')  # bytes of the scales, bytes of the centres
_MOST = 8  # bytes of a coded integer
_TOO_LARGE = f'vectors: expected integers of at most {LARGEST}, found a larger one; the file is damaged'


@dataclass(frozen=True, eq=False)
class VectorRecord:
    """A vector as the file holds it.

    Attributes:
        layout: name, shape and dtype; its storage is ``linear``, which means ``step * z``, or ``logarithm``,
            ``2 ** (step * z)``.
        scale: the step is ``2 ** (scale / OCTAVE)``, that of a logarithm ``2 ** -scale``.
        codes: the integers ``(n,)``, int32.
    """

    layout: DenseLayout
    scale: int
    codes: np.ndarray

    def decode(self) -> Tensor:
        """The vector in its dtype, bit-identical on every machine.

        Raises:
            RiemError: it holds values that are not finite in its dtype.
        """
        if self.layout.storage == LINEAR:
            values = self.codes * powers_of_two(np.array([self.scale]), OCTAVE)
        else:
            with np.errstate(over='ignore'):
                values = powers_of_two(self.codes, 1 << self.scale)
        vector = torch.from_numpy(values).to(DTYPES[self.layout.dtype])
        if not vector.isfinite().all():
            raise RiemError(f'tensor {self.layout.name!r}: expected finite values, found others; the file is damaged')
        return vector


def precision_for(rate: float, least: int = PRECISION) -> int:
    """The precision next to weights of ``rate`` bits each, whose own error is then at least seven times as large.

    >>> precision_for(2.0), precision_for(2.0, NORM_PRECISION), precision_for(8.0)
    (20, 14, 36)
    """
    return min(max(least, math.ceil(OCTAVE * (rate + 1))), MOST_PRECISION)


def quantise(
    name: str,
    tensor: Tensor,
    storage: str,
    precision: int = PRECISION,
    aliases: tuple[str, ...] = (),
) -> VectorRecord | None:
    """The record of a vector ``(n,)``; None where it is too short, constant, not finite or of too wide a range.

    Args:
        name: its state-dict key.
        tensor: its values.
        storage: ``linear``, or ``logarithm`` for variances.
        precision: quarter octaves from its spread down to the step.
        aliases: further state-dict keys of it.

    >>> quantise('bn.bias', torch.arange(8.0) / 3, 'linear').decode()
    tensor([0.0000, 0.3315, 0.6629, 0.9944, 1.3258, 1.6573, 2.0108, 2.3423])
    """
    values = tensor.detach().cpu().double().numpy()
    if values.ndim != 1 or len(values) < MIN_NUMEL or not np.isfinite(values).all():
        return None
    if storage == LOGARITHM:
        if values.min() < 0:
            return None
        scale = min(max(precision // OCTAVE - 1, 0), MAX_FINENESS)
        codes = np.log2(np.maximum(values, SMALLEST_VARIANCE)) * (1 << scale)
    else:
        spread = values.std()
        if spread == 0 or abs(math.log2(spread)) > 60:
            return None
        scale = math.floor(OCTAVE * math.log2(spread)) - precision
        codes = values / powers_of_two(np.array([scale]), OCTAVE)
    if np.abs(codes).max() > LARGEST:
        return None
    layout = DenseLayout(name, tuple(tensor.shape), str(tensor.dtype).removeprefix('torch.'), storage, aliases)
    return VectorRecord(layout, scale, np.rint(codes).astype(np.int32))


def encode(records: Sequence[VectorRecord]) -> bytes:
    """The bytes of all vectors, in order, which :func:`decode` reads; none for no vector."""
    if not records:
        return b''
    centres = np.array([round(int(record.codes.sum()) / len(record.codes)) for record in records], np.int32)
    scales = entropy.encode_vector(np.array([record.scale for record in records], np.int32))
    shifts = entropy.encode_vector(centres)
    deviations = np.concatenate([record.codes - centre for record, centre in zip(records, centres)])
    return _HEADER.pack(len(scales), len(shifts)) + scales + shifts + entropy.encode(deviations[None])


def most_bytes(lengths: Sequence[int]) -> int:
    """The most that vectors of these lengths take, however unlikely their integers."""
    return _HEADER.size + _MOST * (sum(lengths) + 2 * len(lengths) + 8) if lengths else 0


def _largest(integers: np.ndarray) -> int:
    """Magnitude, without a copy of the integers."""
    return max(int(integers.max(initial=0)), -int(integers.min(initial=0)))


def decode(data: bytes, layouts: Sequence[DenseLayout]) -> list[VectorRecord]:
    """The vectors that :func:`encode` was given, by their layouts.

    Raises:
        RiemError: the bytes are not those of vectors of these layouts.
    """
    if not layouts:
        return []
    if len(data) < _HEADER.size:
        raise RiemError(f'vectors: expected at least {_HEADER.size} bytes, found {len(data)}')
    first, second = _HEADER.unpack_from(data)
    ends = _HEADER.size + first, _HEADER.size + first + second
    if ends[1] > len(data):
        raise RiemError(f'vectors: expected {ends[1]} bytes and more, found {len(data)}')
    scales = entropy.decode_vector(data[_HEADER.size : ends[0]], len(layouts))
    centres = entropy.decode_vector(data[ends[0] : ends[1]], len(layouts))
    lengths = [layout.shape[0] for layout in layouts]
    deviations = entropy.decode(data[ends[1] :], (1, sum(lengths)))[0]
    # bounded first, so that int32 holds the sums
    if _largest(centres) > LARGEST or _largest(deviations) > 2 * LARGEST:
        raise RiemError(_TOO_LARGE)
    codes = deviations.astype(np.int32, copy=False)
    pieces = np.split(codes, np.cumsum(lengths)[:-1])
    for piece, centre in zip(pieces, centres):
        piece += centre
    if _largest(codes) > LARGEST:
        raise RiemError(_TOO_LARGE)
    for layout, scale in zip(layouts, scales):
        low, high = (-MAX_EXPONENT, MAX_EXPONENT) if layout.storage == LINEAR else (0, MAX_FINENESS)
        if not low <= scale <= high:
            raise RiemError(f'tensor {layout.name!r}: expected a scale of {low} to {high}, found {scale}')
    return [VectorRecord(layout, int(scale), piece) for layout, scale, piece in zip(layouts, scales, pieces)]
