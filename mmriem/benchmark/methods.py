"""The methods of the benchmark: mmriem and its peers."""

from __future__ import annotations

import hashlib
import importlib
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mmriem.core.coding.packing import PayloadReader, float_bytes, pack
from mmriem.core.errors import RiemError
from mmriem.core.file import reading, writing
from mmriem.core.file.manifest import Source
from mmriem.core.pipeline.compress import Compressed, compress
from mmriem.core.pipeline.settings import Settings
from mmriem.core.representations.grid import Grid

from .method import Method, PackedMethod, complete, floating_tensors

__all__ = ['METHODS', 'Fp16', 'Hqq', 'MinMax', 'Mmriem', 'NNCodec', 'Rounding', 'Svd', 'get_method']

EPS = 1e-5
"""What NNCodec adds to a variance."""


class Fp16(Method):
    """Every tensor in fp16 (fp32 where that overflows), as a plain safetensors file."""

    name = 'fp16'

    def encode(self, model: nn.Module, setting: Mapping[str, Any], path: Path, probe: Any = None) -> None:
        """See `Method`; there is nothing to set."""
        state_dict = model.state_dict()
        halves = {key: state_dict[key].half() for key in floating_tensors(model)}
        save_file({key: x if x.isfinite().all() else state_dict[key] for key, x in halves.items()}, path)

    def decode(self, path: Path, model: nn.Module) -> dict[str, Tensor]:
        """See `Method`."""
        return complete(model, load_file(path))


class Rounding(PackedMethod):
    """Rounding to the nearest of `2**bits - 1` symmetric levels, one fp16 scale for each output channel."""

    name = 'rounding'

    def pack(self, matrix: Tensor, bits: int) -> bytes:
        """Scales, then codes."""
        top = 2 ** (bits - 1) - 1
        scale = (matrix.abs().amax(1) / top).clamp_min(2.0**-24).half().float()
        codes = (matrix / scale[:, None]).round().clamp(-top, top) + top
        return float_bytes(scale, '<f2') + pack(codes.to(torch.uint8), bits)

    def unpack(self, reader: PayloadReader, shape: tuple[int, int], bits: int) -> Tensor:
        """See `PackedMethod`."""
        scale = reader.floats('<f2', shape[:1])
        return (reader.integers(bits, shape).float() - (2 ** (bits - 1) - 1)) * scale[:, None]


class MinMax(PackedMethod):
    """Rounding to the nearest of `2**bits` levels between the minimum and maximum of each output channel."""

    name = 'minmax'

    def pack(self, matrix: Tensor, bits: int) -> bytes:
        """See `pack_columns`."""
        return pack_columns(matrix.T, bits)

    def unpack(self, reader: PayloadReader, shape: tuple[int, int], bits: int) -> Tensor:
        """See `PackedMethod`."""
        return unpack_columns(reader, (shape[1], shape[0]), bits).T


def pack_columns(columns: Tensor, bits: int) -> bytes:
    """`(n, d)` with `2**bits` levels between the minimum and maximum of each column: fp16 lows and steps, codes."""
    grid = Grid.between(columns, bits)
    return float_bytes(grid.low, '<f2') + float_bytes(grid.step, '<f2') + pack(grid.nearest(columns), bits)


def unpack_columns(reader: PayloadReader, shape: tuple[int, int], bits: int) -> Tensor:
    """Inverse of `pack_columns`, up to rounding: `(n, d)`."""
    low, step = (reader.floats('<f2', shape[1:]) for _ in range(2))
    return Grid(low, step, bits).values(reader.integers(bits, shape))


class Svd(PackedMethod):
    """Truncated SVD, its two factors with 8 bits between the minimum and maximum of each column.

    `bits` is what a weight of the matrix may take; it gives the rank, at least 1.
    """

    name = 'svd'

    def pack(self, matrix: Tensor, bits: float) -> bytes:
        """Left factor, then right factor, each as lows, steps, codes."""
        left, values, right = torch.linalg.svd(matrix, full_matrices=False)
        rank, root = self.rank((len(matrix), matrix.shape[1]), bits), values.sqrt()
        factors = (left * root)[:, :rank], (right.T * root)[:, :rank]
        return b''.join(pack_columns(factor, 8) for factor in factors)

    def unpack(self, reader: PayloadReader, shape: tuple[int, int], bits: float) -> Tensor:
        """See `PackedMethod`."""
        rank = self.rank(shape, bits)
        left, right = (unpack_columns(reader, (rows, rank), 8) for rows in shape)
        return left @ right.T

    @staticmethod
    def rank(shape: tuple[int, int], bits: float) -> int:
        """Of a matrix of that shape: the highest with at most these bits for each weight, at least 1."""
        column = 8 * sum(shape) + 2 * 2 * 16  # bits of the codes, and of two lows and two steps
        return min(max(1, int(bits * shape[0] * shape[1] / column)), *shape)


class Hqq(PackedMethod):
    """Half-quadratic quantisation by the HQQ library; an fp16 scale and an fp16 zero for each group of weights.

    A group is `group` weights in a row. Codes are packed densely, which the library does not do at 3 bits. A matrix
    that does not split into groups is padded with zeros.
    """

    name = 'hqq'
    requires = 'hqq'
    install = 'DISABLE_CUDA=1 pip install --no-deps hqq==0.2.8.post1'

    def prepare(self) -> None:
        """See `Method`."""
        self._quantizer = importlib.import_module('hqq.core.quantize').Quantizer

    def pack(self, matrix: Tensor, bits: int, group: int = 64) -> bytes:
        """Scales, zeros, codes."""
        flat = F.pad(matrix.reshape(-1), (0, -matrix.numel() % group))
        codes, meta = self._quantizer.quantize(flat, bits, group_size=group, axis=1, bitpack=False, device='cpu')
        side = b''.join(float_bytes(meta[key].reshape(-1), '<f2') for key in ('scale', 'zero'))
        return side + pack(codes.to(torch.uint8), bits)

    def unpack(self, reader: PayloadReader, shape: tuple[int, int], bits: int, group: int = 64) -> Tensor:
        """See `PackedMethod`."""
        numel = shape[0] * shape[1]
        groups = -(-numel // group)
        scale, zero = (reader.floats('<f2', (groups, 1)) for _ in range(2))
        codes = reader.integers(bits, (groups, group))
        return ((codes.float() - zero) * scale).reshape(-1)[:numel].reshape(shape)


class NNCodec(Method):
    """The reference software of ISO/IEC 15938-17 (Fraunhofer HHI); the file is its bitstream.

    `qp` is the quantisation parameter of the weights, 4 less for one bit more; with `bnf` a batch norm right after a
    convolution is stored as one scale and one bias for each channel.
    """

    name = 'nncodec'
    requires = 'nncodec'
    install = 'pip install --no-deps nncodec==2.1.3'

    def prepare(self) -> None:
        """Import the codec alone: its `framework`, for training and data sets, wants torchvision, pandas and more."""
        framework = ModuleType('nncodec.framework')
        for name in ('tensorflow_model', 'pytorch_model', 'use_case_init'):
            setattr(framework, name, ModuleType(name))
        sys.modules.setdefault(framework.__name__, framework)
        self._nnc = importlib.import_module('nncodec.nnc')

    def encode(self, model: nn.Module, setting: Mapping[str, Any], path: Path, probe: Any = None) -> None:
        """See `Method`; `setting` has arguments of `nncodec.nnc.compress`."""
        state_dict = model.state_dict()
        tensors = {key: state_dict[key].float() for key in floating_tensors(model)}
        arrays = {key: tensor.reshape(tensor.shape or 1).numpy() for key, tensor in tensors.items()}  # no scalars
        options = dict(use_dq=True, lambda_scale=1, **setting)
        if options.get('bnf'):
            options['block_id_and_param_type'] = _blocks(model)
        self._nnc.compress(arrays, bitstream_path=str(path), **options)

    def decode(self, path: Path, model: nn.Module) -> dict[str, Tensor]:
        """See `Method`; what a folded norm stored as scale and bias comes as its affine weights, mean 0, variance 1."""
        arrays = self._nnc.decompress(bytearray(path.read_bytes()))
        tensors = {key: torch.from_numpy(array) for key, array in arrays.items()}
        for conv, norm in folding_pairs(model).items():
            if f'{norm}.running_var' in tensors:
                continue
            scale, bias = tensors.pop(f'{conv}.weight_scaling'), tensors.pop(f'{conv}.weight.bias')
            tensors[f'{norm}.weight'], tensors[f'{norm}.bias'] = scale, bias
            tensors[f'{norm}.running_mean'] = torch.zeros_like(scale)
            tensors[f'{norm}.running_var'] = torch.full_like(scale, 1 - EPS)
        return complete(model, tensors)


def folding_pairs(model: nn.Module) -> dict[str, str]:
    """Convolutions without bias, and the batch norm that follows each in the order of its parent's children.

    A convolution with several norms (shared between levels of a pyramid) has none, and a norm of another `eps` than
    NNCodec's folding has is left alone.
    """
    shared = {key for keys in floating_tensors(model).values() if len(keys) > 1 for key in keys}
    pairs = {}
    for prefix, parent in model.named_modules():
        children = [(f'{prefix}.{name}' if prefix else name, child) for name, child in parent.named_children()]
        for (first, conv), (second, norm) in zip(children, children[1:]):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d) and _folds(conv, norm):
                pairs[first] = second
    return {conv: norm for conv, norm in pairs.items() if f'{conv}.weight' not in shared}


def _folds(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> bool:
    return conv.bias is None and conv.out_channels == norm.num_features and norm.affine and norm.eps == EPS


def _blocks(model: nn.Module) -> dict[str, dict[str, str]]:
    """Which tensors belong together, in the words of NNCodec."""
    kinds = {'weight': 'bn.gamma', 'bias': 'bn.beta', 'running_mean': 'bn.mean', 'running_var': 'bn.var'}
    blocks: dict[str, dict[str, str]] = {'block_identifier': {}, 'parameter_type': {}}
    for conv, norm in folding_pairs(model).items():
        of_block = {f'{conv}.weight': 'weight', **{f'{norm}.{key}': kind for key, kind in kinds.items()}}
        blocks['parameter_type'].update(of_block)
        blocks['block_identifier'].update(dict.fromkeys(of_block, conv))
    return blocks


class Mmriem(Method):
    """mmriem itself; a setting has arguments of `mmriem.core.pipeline.settings.Settings`."""

    name = 'mmriem'
    is_peer = False

    def encode(self, model: nn.Module, setting: Mapping[str, Any], path: Path, probe: Any = None) -> None:
        """See `Method`."""
        writing.write(path, compressed(model, Settings.of(**setting), probe).archive, force=True)

    def decode(self, path: Path, model: nn.Module) -> dict[str, Tensor]:
        """See `Method`."""
        return reading.read(path).decode()


def compressed(model: nn.Module, settings: Settings, probe: Any) -> Compressed:
    """The archive of a model, without names of classes, which no other method stores."""
    source = Source('model.pth', hashlib.sha256().hexdigest())
    measured = {} if probe is None else {'probe': probe}
    threads = torch.get_num_threads()
    made = compress(model, settings, dataset_meta={}, source=source, threads=threads, **measured)
    return cast(Compressed, made)  # this process is the only one, so the first


METHODS: dict[str, type[Method]] = {
    method.name: method for method in (Fp16, Rounding, MinMax, Svd, Hqq, NNCodec, Mmriem)
}


def get_method(name: str) -> type[Method]:
    """The method that a config calls `name`.

    Raises:
        RiemError: there is none.
    """
    if name not in METHODS:
        raise RiemError(f'method {name!r}: expected one of {", ".join(METHODS)}; correct the config')
    return METHODS[name]
