"""Batch norms whose statistics are rounded coarsely, at no error.

Where a network predicts, a BatchNorm computes ``weight * (x - mean) / sqrt(variance + eps) + bias``: two numbers for
each channel would do. All four are kept, because training needs them, but mean and variance are written in a few bits,
and weight and bias make up for the difference before they are rounded themselves.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .derived import derive
from .vectors import VectorRecord, quantise

STATISTICS = 8
"""Precision (see `.vectors`) of a norm's mean and variance: a quarter of the spread of the means, half an octave."""


@dataclass(frozen=True)
class NormView:
    """A BatchNorm in a state dict.

    Attributes:
        weight, bias, mean, variance: keys.
        eps: added to the variance.
    """

    weight: str
    bias: str
    mean: str
    variance: str
    eps: float

    @property
    def keys(self) -> tuple[str, str, str, str]:
        return self.weight, self.bias, self.mean, self.variance


def find_norms(model: nn.Module, vectors: Mapping[str, str]) -> list[NormView]:
    """The batch norms of which all four vectors may be rounded, and belong to no other module.

    Args:
        model: any module.
        vectors: see :func:`mmriem.core.file.vectors.find_vectors`.

    >>> from .vectors import find_vectors
    >>> norm = nn.BatchNorm2d(8)
    >>> find_norms(norm, find_vectors(norm))
    [NormView(weight='weight', bias='bias', mean='running_mean', variance='running_var', eps=1e-05)]
    """
    uses = Counter(tensor.data_ptr() for tensor in model.state_dict().values())
    found = []
    for prefix, module in model.named_modules(remove_duplicate=False):
        if not isinstance(module, _BatchNorm) or not module.affine or module.running_mean is None:
            continue
        names = ('weight', 'bias', 'running_mean', 'running_var')
        weight, bias, mean, variance = (f'{prefix}.{name}' if prefix else name for name in names)
        view = NormView(weight, bias, mean, variance, module.eps)
        if all(key in vectors for key in view.keys) and all(uses[getattr(module, n).data_ptr()] == 1 for n in names):
            found.append(view)
    return found


def rounded_norms(
    norms: Iterable[NormView], state_dict: Mapping[str, Tensor], vectors: Mapping[str, str], precision: int
) -> dict[str, VectorRecord]:
    """The records of the vectors of these norms, by state-dict key.

    A norm with a vector that is stored otherwise (too short, constant, not finite) has none.

    Args:
        norms: see :func:`find_norms`.
        state_dict: the values.
        vectors: how each vector is stored.
        precision: of weights and biases.
    """
    found: dict[str, VectorRecord] = {}
    for norm in norms:
        if any(derive(key, state_dict[key]) for key in norm.keys):
            continue
        new_mean, new_variance = (
            quantise(key, state_dict[key], vectors[key], STATISTICS) for key in (norm.mean, norm.variance)
        )
        if new_mean is None or new_variance is None:
            continue
        records = {norm.mean: new_mean, norm.variance: new_variance}
        weight, bias, mean, variance = (state_dict[key].double() for key in norm.keys)
        scale = weight / (variance + norm.eps).sqrt()
        affine = {
            norm.weight: scale * (new_variance.decode().double() + norm.eps).sqrt(),
            norm.bias: bias + scale * (new_mean.decode().double() - mean),
        }
        for key, values in affine.items():
            record = quantise(key, values.to(state_dict[key].dtype), vectors[key], precision)
            if record is not None:
                records[key] = record
        if len(records) == len(norm.keys):
            found.update(records)
    return found
