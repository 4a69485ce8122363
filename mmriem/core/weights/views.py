"""Find the weights of any module and see each of them as a weight matrix."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd

from ..errors import RiemError, brief

LAYOUTS = ('out_first', 'in_first', 'unit_first')
# One record costs about 70 bytes in the file (two SHA-256, name, shape, settings), and the numbers that a
# representation stores once per matrix cost one or two hundred bytes more. As fp16 a weight of 512 elements
# takes 1 KiB, so below this size compression saves next to nothing and still costs accuracy.
DEFAULT_MIN_NUMEL = 512


@dataclass(frozen=True)
class WeightView:
    """How one parameter is seen as a weight matrix ``(out, in)``.

    Attributes:
        name: state-dict key, the first one where modules share the parameter.
        shape: shape of the parameter, at least two dimensions.
        layout: ``out_first``: the first dimension is ``out``, the others are ``in`` (Linear, convolution,
            packed ``in_proj_weight``, embedding, bias table). ``in_first``: ``(in, out / groups, *kernel)``,
            a transposed convolution. ``unit_first``: leading dimensions of size 1, then as ``out_first`` (a
            position embedding ``(1, tokens, channels)``).
        groups: groups of a transposed convolution, 1 elsewhere (the shape of a grouped convolution tells
            all).
        aliases: further state-dict keys of the same parameter.
        dtype: dtype of the parameter.

    Raises:
        RiemError: the fields contradict one another.

    >>> WeightView('deconv.weight', (6, 2, 3, 3), layout='in_first', groups=2).matrix_shape
    (4, 27)
    """

    name: str
    shape: tuple[int, ...]
    layout: str = 'out_first'
    groups: int = 1
    aliases: tuple[str, ...] = ()
    dtype: torch.dtype = torch.float32

    def __post_init__(self) -> None:
        if len(self.shape) < 2 or min(self.shape) < 1:
            raise RiemError(f'weight {self.name!r}: expected a shape of two or more positive sizes, found {self.shape}')
        if self.layout not in LAYOUTS:
            raise RiemError(f'weight {self.name!r}: expected a layout among {LAYOUTS}, found {brief(self.layout)}')
        if self.groups < 1 or (self.groups > 1 and self.layout != 'in_first'):
            raise RiemError(f'weight {self.name!r}: {self.groups} groups do not go with layout {brief(self.layout)}')
        if self.shape[0] % self.groups:
            raise RiemError(f'weight {self.name!r}: shape {self.shape} does not split into {self.groups} groups')
        if self.layout == 'unit_first' and (self.shape[0] != 1 or len(self._rows_and_rest()) < 2):
            raise RiemError(f'weight {self.name!r}: shape {self.shape} does not go with layout unit_first')

    @property
    def matrix_shape(self) -> tuple[int, int]:
        """``(out, in)`` of the weight matrix."""
        if self.layout == 'in_first':
            return self.shape[1] * self.groups, self.shape[0] // self.groups * math.prod(self.shape[2:])
        rows, *rest = self._rows_and_rest()
        return rows, math.prod(rest)

    @property
    def kernel_size(self) -> int:
        """Neighbouring columns of a matrix that belong to one input channel: the elements of a convolution's kernel."""
        return math.prod(self.shape[2:]) if self.layout != 'unit_first' else 1

    def to_matrix(self, tensor: Tensor) -> Tensor:
        """The weight matrix ``(out, in)`` in float32 of a parameter of ``shape``.

        Raises:
            RiemError: the tensor has another shape.
        """
        if tuple(tensor.shape) != self.shape:
            raise RiemError(f'weight {self.name!r}: expected shape {self.shape}, found {tuple(tensor.shape)}')
        if self.layout == 'in_first':
            inputs, outputs = self._per_group()
            tensor = tensor.reshape(self.groups, inputs, outputs, -1).transpose(1, 2)
        return tensor.reshape(self.matrix_shape).to(torch.float32)

    def from_matrix(self, matrix: Tensor) -> Tensor:
        """The parameter of ``shape`` with this weight matrix, dtype kept: the inverse of ``to_matrix``.

        Raises:
            RiemError: the matrix has another shape than ``matrix_shape``.
        """
        if tuple(matrix.shape) != self.matrix_shape:
            raise RiemError(f'weight {self.name!r}: expected a matrix {self.matrix_shape}, found {tuple(matrix.shape)}')
        if self.layout == 'in_first':
            inputs, outputs = self._per_group()
            matrix = matrix.reshape(self.groups, outputs, inputs, -1).transpose(1, 2)
        return matrix.reshape(self.shape)

    def _per_group(self) -> tuple[int, int]:
        return self.shape[0] // self.groups, self.shape[1]

    def _rows_and_rest(self) -> tuple[int, ...]:
        if self.layout != 'unit_first':
            return self.shape
        return self.shape[next((i for i, size in enumerate(self.shape) if size > 1), len(self.shape)) :]


class ParameterOwner(NamedTuple):
    """A place where a module holds a parameter: ``getattr(module, attribute)``, state-dict key ``name``."""

    module: nn.Module
    attribute: str
    name: str


def parameter_owners(model: nn.Module) -> Iterator[ParameterOwner]:
    """Every place that holds a parameter, in state-dict order; a shared parameter comes once per place.

    >>> [owner.name for owner in parameter_owners(nn.Sequential(nn.Linear(2, 3)))]
    ['0.weight', '0.bias']
    """
    for prefix, module in model.named_modules(remove_duplicate=False):
        for attribute, _ in module.named_parameters(recurse=False, remove_duplicate=False):
            yield ParameterOwner(module, attribute, f'{prefix}.{attribute}' if prefix else attribute)


def find_weights(
    model: nn.Module,
    include: Sequence[str] = ('*',),
    exclude: Sequence[str] = (),
    min_numel: int = DEFAULT_MIN_NUMEL,
) -> list[WeightView]:
    """The compressible weights of a module, in state-dict order, each shared one once.

    A weight is a floating parameter with two or more dimensions, at least ``min_numel`` elements, and more
    than one row and one column as a matrix. Buffers are no weights.

    Args:
        model: any module.
        include: shell patterns (``fnmatch``) on state-dict keys; a weight is taken when one matches one of
            its keys.
        exclude: patterns of keys that are left out, stronger than ``include``.
        min_numel: smaller weights stay dense, see ``DEFAULT_MIN_NUMEL``.

    Raises:
        RiemError: an include pattern matches no floating parameter of two or more dimensions, or an exclude
            pattern no parameter at all.

    >>> [view.matrix_shape for view in find_weights(nn.Conv2d(16, 32, 3))]
    [(32, 144)]
    """
    owners = list(parameter_owners(model))
    candidates = every_weight(model)
    _require_matches('include', include, [name for view in candidates for name in _keys(view)])
    _require_matches('exclude', exclude, [owner.name for owner in owners])
    return [
        view
        for view in candidates
        if _matches(view, include)
        and not _matches(view, exclude)
        and math.prod(view.shape) >= min_numel
        and min(view.matrix_shape) > 1
    ]


def every_weight(model: nn.Module) -> list[WeightView]:
    """All floating parameters of two or more dimensions, in state-dict order, each shared one once."""
    return [view for view in _views(parameter_owners(model)) if view is not None]


def _views(owners: Iterable[ParameterOwner]) -> Iterator[WeightView | None]:
    places: dict[int, list[ParameterOwner]] = {}
    for owner in owners:
        places.setdefault(id(getattr(owner.module, owner.attribute)), []).append(owner)
    return (_view(shared) for shared in places.values())


def _view(places: list[ParameterOwner]) -> WeightView | None:
    parameter = getattr(places[0].module, places[0].attribute)
    if not parameter.is_floating_point() or parameter.dim() < 2 or parameter.numel() == 0:
        return None
    layout, groups = _layout(places, tuple(parameter.shape))
    name, *aliases = (place.name for place in places)
    return WeightView(name, tuple(parameter.shape), layout, groups, tuple(aliases), parameter.dtype)


def _layout(places: list[ParameterOwner], shape: tuple[int, ...]) -> tuple[str, int]:
    for module, attribute, _ in places:
        if attribute == 'weight' and isinstance(module, _ConvTransposeNd):
            return 'in_first', module.groups
    # a leading 1 is one output channel in a ``weight``, but a broadcast dimension in a position embedding
    named_weight = any(attribute.endswith('weight') for _, attribute, _ in places)
    several_dims = sum(size > 1 for size in shape) > 1
    return 'unit_first' if shape[0] == 1 and several_dims and not named_weight else 'out_first', 1


def _keys(view: WeightView) -> tuple[str, ...]:
    return (view.name, *view.aliases)


def _matches(view: WeightView, patterns: Sequence[str]) -> bool:
    return any(_any_match(key, patterns) for key in _keys(view))


def _any_match(key: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(key, pattern) for pattern in patterns)


def _require_matches(option: str, patterns: Sequence[str], names: list[str]) -> None:
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            close = ', '.join(difflib.get_close_matches(pattern, names, n=3, cutoff=0.0)) or 'none'
            raise RiemError(
                f'{option} pattern {pattern!r} matches none of the {len(names)} parameters that it could '
                f'(floating, two or more dimensions for include); close names: {close}'
            )
