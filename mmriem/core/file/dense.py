"""What stays dense: norms, biases, small tensors, in fp16 where that is exact enough."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..errors import RiemError, brief

DTYPES = {
    str(dtype).removeprefix('torch.'): dtype
    for dtype in (
        torch.float32,
        torch.float16,
        torch.bfloat16,
        torch.float64,
        torch.complex64,
        torch.complex128,
        torch.bool,
        torch.uint8,
        torch.int8,
        torch.int16,
        torch.int32,
        torch.int64,
    )
}
# numpy dtype in the file; raw: the tensor's own bytes
STORAGES = {'half': '<f2', 'single': '<f4', 'raw': None}
LINEAR, LOGARITHM = VECTOR_STORAGES = ('linear', 'logarithm')
"""Storages of floating vectors that are entropy-coded together (`mmriem.core.file.vectors`), one for variances."""


def dtype_name(key: str, dtype: torch.dtype) -> str:
    """The name by which a ``.riem`` file calls a dtype.

    Raises:
        RiemError: the file format does not know the dtype of tensor ``key``.
    """
    name = str(dtype).removeprefix('torch.')
    if name not in DTYPES:
        raise RiemError(f'tensor {key!r}: expected a dtype among {", ".join(DTYPES)}, found {name}')
    return name


@dataclass(frozen=True)
class DenseLayout:
    """What the manifest says of a dense tensor.

    Attributes:
        name: state-dict key.
        shape: shape, any number of dimensions.
        dtype: name of the dtype to restore, a key of ``DTYPES``.
        storage: ``half`` (fp16), ``single`` (fp32), ``raw`` (little-endian bytes of ``dtype``), or one of
            ``VECTOR_STORAGES``.
        aliases: further state-dict keys of the same tensor.

    Raises:
        RiemError: the storage cannot hold the dtype.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    storage: str
    aliases: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        known = self.dtype in DTYPES and (self.storage in STORAGES or self.is_vector)
        if not known or (self.dtype == 'bfloat16' if self.storage == 'raw' else not self._is_float()):
            raise RiemError(
                f'tensor {self.name!r}: dtype {brief(self.dtype)} does not go with storage {brief(self.storage)}'
            )
        if self.is_vector and (len(self.shape) != 1 or not self.shape[0]):
            raise RiemError(f'tensor {self.name!r}: shape {self.shape} does not go with storage {self.storage!r}')

    @property
    def is_vector(self) -> bool:
        """Whether it is one of the vectors that are entropy-coded together."""
        return self.storage in VECTOR_STORAGES

    @property
    def n_bytes(self) -> int:
        """Bytes that the values take in the file, where that follows from the layout: not for vectors."""
        stored = STORAGES[self.storage]
        itemsize = np.dtype(stored).itemsize if stored else DTYPES[self.dtype].itemsize
        return math.prod(self.shape) * itemsize

    def _is_float(self) -> bool:
        return DTYPES[self.dtype].is_floating_point


@dataclass(frozen=True)
class DenseRecord:
    """A dense tensor as the file holds it: layout and little-endian values."""

    layout: DenseLayout
    values: bytes

    def decode(self) -> Tensor:
        """The tensor in its original shape and dtype; memory of its own.

        Raises:
            RiemError: a boolean tensor holds something else than 0 and 1, or a floating one NaN or infinity and is no
                mask.
        """
        layout, dtype = self.layout, DTYPES[self.layout.dtype]
        if layout.storage == 'raw':
            tensor = _from_raw(layout.name, self.values, dtype).reshape(layout.shape)
        else:
            stored = np.frombuffer(self.values, STORAGES[layout.storage])
            native = stored.astype(stored.dtype.newbyteorder('='))  # a copy: frombuffer is read-only
            tensor = torch.from_numpy(native).to(dtype).reshape(layout.shape)
        if not tensor.isfinite().all() and not _is_mask(tensor):
            raise RiemError(f'tensor {layout.name!r}: expected finite values, or a mask of 0 and -inf, found others')
        return tensor


def store(name: str, tensor: Tensor, aliases: tuple[str, ...] = ()) -> DenseRecord:
    """The record of a tensor that stays dense.

    A float tensor goes to fp16 when each ``x`` is finite there and its error is at most ``2^-11 |x| +
    2^-25``: half a unit in the last place, or half the subnormal spacing. Next to a norm's ``eps`` (1e-5 and
    larger) the second term is 0.3 % of the smallest denominator ``var + eps`` that there is, so 0.15 % of a
    channel's scale at worst; means, biases and affine weights that small are lost in the activations they
    join. Otherwise float tensors go to fp32, and float64 values that fp32 cannot hold as finite numbers stay
    as they are. Integers and booleans are exact.

    Raises:
        RiemError: a dtype that the file format does not know.
    """
    dtype = dtype_name(name, tensor.dtype)
    tensor = tensor.detach().cpu()
    storage = _cheapest(tensor) if tensor.is_floating_point() else 'raw'
    layout = DenseLayout(name, tuple(tensor.shape), dtype, storage, aliases)
    values = _to_raw(tensor) if storage == 'raw' else _floats(tensor).astype(STORAGES[storage]).tobytes()
    return DenseRecord(layout, values)


def _is_mask(tensor: Tensor) -> bool:
    """Of attention: a matrix, or several, of zeros and minus infinities. Nothing else is right with infinities."""
    if tensor.dim() < 2 or not tensor.is_floating_point():
        return False
    hidden = tensor == -math.inf
    return bool(((tensor == 0) | hidden).all() and hidden.any() and not hidden.all())


def _cheapest(tensor: Tensor) -> str:
    exact = _floats(tensor).astype(np.float64)
    with np.errstate(over='ignore'):
        half, single = exact.astype(np.float16), exact.astype(np.float32)
    bound = np.ldexp(np.abs(exact), -11) + 2.0**-25
    if np.isfinite(half).all() and (np.abs(half.astype(np.float64) - exact) <= bound).all():
        return 'half'
    return 'single' if (np.isfinite(single) == np.isfinite(exact)).all() else 'raw'


def _floats(tensor: Tensor) -> np.ndarray:
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()


def _to_raw(tensor: Tensor) -> bytes:
    values = tensor.contiguous().numpy()
    return values.astype(values.dtype.newbyteorder('<')).tobytes()


def _from_raw(name: str, values: bytes, dtype: torch.dtype) -> Tensor:
    if dtype == torch.bool and values.strip(b'\0\1'):
        raise RiemError(f'tensor {name!r}: expected booleans of 0 and 1, found another byte')
    native = torch.empty(0, dtype=dtype).numpy().dtype
    return torch.from_numpy(np.frombuffer(values, native.newbyteorder('<')).astype(native))
