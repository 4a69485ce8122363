"""Operations and bit operations of a network, beside the bytes of its weights.

Conventions, those of the literature on compression and of MMEngine:

* one FLOP is one multiply-add (MAC); where a sigmoid is evaluated, that is one, too;
* BOPs are FLOPs times the bits of the one number times the bits of the other: weight bits times activation bits;
* products count, whether with a weight or between activations (attention); norms, activation functions, pooling and
  resampling do not.

A weight of a network is applied in one of two ways. ``regenerated``: it is made once, when the network is loaded, and
applied as a dense one. ``matrix_free``: it is made block by block in each run, or, of low rank, not at all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ..file.archive import WeightRecord
from ..representations.base import FLOAT_BITS, Work
from ..representations.registry import get_representation, parsed
from ..torch_versions import attention_as_products
from ..weights.views import every_weight, parameter_owners

WAYS = ('dense', 'regeneration', 'product', 'matrix_free')
"""What is counted: the dense network; making its weights once; applying those that were made; both at a time, in
blocks."""


@dataclass(frozen=True)
class Macs:
    """Multiply-adds of one run.

    Attributes:
        weights: by the first state-dict key of each parameter of two or more dimensions; 0 where no counted operation
            reads it (a deformable convolution, a table, a layer that did not run).
        others: of products without such a parameter.
    """

    weights: dict[str, int]
    others: int

    @property
    def total(self) -> int:
        """Of all."""
        return sum(self.weights.values()) + self.others


def count_macs(model: nn.Module, run: Callable[[], Any]) -> Macs:
    """Run the model and count the multiply-adds of each weight, however often and by whatever module it is used.

    >>> layer = nn.Linear(4, 3)
    >>> count_macs(layer, lambda: layer(torch.zeros(5, 4)))
    Macs(weights={'weight': 60}, others=0)
    """
    places = {owner.name: getattr(owner.module, owner.attribute) for owner in parameter_owners(model)}
    names = {_memory(places[view.name]): view.name for view in every_weight(model)}
    with torch.no_grad(), attention_as_products(), _Counter(names) as counter:
        run()
    return Macs({name: counter.macs.get(name, 0) for name in names.values()}, counter.macs.get(None, 0))


def complexity(
    model: nn.Module,
    run: Callable[[], Any],
    records: Iterable[WeightRecord] = (),
    activation_bits: int = FLOAT_BITS,
) -> dict[str, Any]:
    """FLOPs, BOPs and bytes of each weight and of the whole network, JSON-able.

    Args:
        model: the dense network; its values do not matter.
        run: runs it once, on one image.
        records: the compressed weights; others are dense in 32 bits.
        activation_bits: of the other number in each product with a weight.

    Returns:
        ``weights``: of each ``name``, ``shape``, ``representation``, ``bytes_fp32``, ``bytes``, and ``flops`` and
        ``bops`` with an entry for each of :data:`WAYS`. ``totals``: the same sums, products between activations
        included, and ``other_flops``, which these are. ``not_counted``: names of weights without any.
    """
    macs = count_macs(model, run)
    by_name = {record.view.name: record for record in records}
    blockwise = {
        owner.name
        for owner in parameter_owners(model)
        if isinstance(owner.module, (nn.Linear, nn.Conv2d)) and owner.attribute == 'weight'
    }
    grouped = {
        f'{name}.weight' if name else 'weight'
        for name, module in model.named_modules()
        if getattr(module, 'groups', 1) != 1
    }
    entries = []
    for view in every_weight(model):
        record = by_name.get(view.name)
        works = _works(record, macs.weights[view.name], math.prod(view.shape), activation_bits)
        if record is not None and view.name in blockwise:
            positions = macs.weights[view.name] // math.prod(view.shape)
            encoded = parsed(record.encoded)
            costs = get_representation(encoded.name).costs
            works['matrix_free'] = costs.product(encoded, positions, activation_bits, view.name in grouped)
        entries.append(
            {
                'name': view.name,
                'shape': list(view.shape),
                'representation': record.encoded.name if record else 'dense',
                'bytes_fp32': 4 * math.prod(view.shape),
                'bytes': record.encoded.payload_bits() / 8 if record else 4 * math.prod(view.shape),
                'flops': {way: flops(work) for way, work in works.items()},
                'bops': {way: bops(work) for way, work in works.items()},
            }
        )
    others = [Work(macs.others, (activation_bits, activation_bits))]
    return {
        'activation_bits': activation_bits,
        'weights': entries,
        'totals': {
            'bytes_fp32': sum(entry['bytes_fp32'] for entry in entries),
            'bytes': sum(entry['bytes'] for entry in entries),
            'other_flops': macs.others,
            'flops': _totals(entries, 'flops', flops(others)),
            'bops': _totals(entries, 'bops', bops(others)),
        },
        'not_counted': [name for name, count in macs.weights.items() if count == 0],
    }


def flops(works: Iterable[Work]) -> int:
    """Their number."""
    return sum(work.count for work in works)


def bops(works: Iterable[Work]) -> int:
    """Their number, each times the bits of both its numbers."""
    return sum(work.count * work.bits[0] * work.bits[1] for work in works)


def _works(record: WeightRecord | None, macs: int, numel: int, activation_bits: int) -> dict[str, list[Work]]:
    """What is computed with a weight in each way; matrix-free as for a layer that cannot be applied in blocks."""
    dense = [Work(macs, (FLOAT_BITS, activation_bits))]
    if record is None:
        return {'dense': dense, 'regeneration': [], 'product': dense, 'matrix_free': dense}
    encoded = parsed(record.encoded)
    costs = get_representation(encoded.name).costs
    making = costs.regeneration(encoded.shape, encoded.settings)
    product = [Work(macs, (costs.product_bits(encoded), activation_bits))]
    return {'dense': dense, 'regeneration': making, 'product': product, 'matrix_free': [*making, *product]}


def _totals(entries: Iterable[Mapping[str, Any]], key: str, others: int) -> dict[str, int]:
    sums = {way: sum(entry[key][way] for entry in entries) for way in WAYS}
    return {way: total if way == 'regeneration' else total + others for way, total in sums.items()}


def _product(left: Tensor, right: Tensor, **_: Any) -> int:
    """Multiply-adds of ``(..., n, k) @ (..., k, m)``; of ``(n, k) @ (k,)``; of ``(k,) @ (k,)``."""
    return left.numel() * (right.shape[-1] if right.dim() > 1 else 1)


def _added_product(added: Tensor, left: Tensor, right: Tensor, **_: Any) -> int:
    return _product(left, right)


def _convolution(
    inputs: Tensor, weight: Tensor, bias: Any, stride: Any, padding: Any, dilation: Any, transposed: bool,
    *_: Any, out: Tensor,
) -> int:  # fmt: skip
    """Each weight is applied at each position of the output, of a transposed one at each of the input."""
    positions = math.prod((inputs if transposed else out).shape[2:])
    return len(inputs) * positions * weight.numel()


aten = torch.ops.aten
FORMULAS: dict[Any, Callable[..., int]] = {
    aten.mm: _product,
    aten.bmm: _product,
    aten.mv: _product,
    aten.dot: _product,
    aten.addmm: _added_product,
    aten.addmv: _added_product,
    aten.addbmm: _added_product,
    aten.baddbmm: _added_product,
    aten.convolution: _convolution,
}
"""Multiply-adds by operation; all others that multiply are made of these."""


class _Counter(TorchDispatchMode):
    """Multiply-adds of the operations in :data:`FORMULAS`, by the name of the weight they read, or None."""

    def __init__(self, names: Mapping[int, str]) -> None:
        super().__init__()
        self.names = names
        self.macs: dict[str | None, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        formula = FORMULAS.get(func._overloadpacket)
        if formula is None:
            with self:
                result = func.decompose(*args, **kwargs)
            return func(*args, **kwargs) if result is NotImplemented else result
        result = func(*args, **kwargs)
        read = (self.names.get(_memory(x)) for x in (*args, *kwargs.values()) if isinstance(x, Tensor))
        name = next((name for name in read if name is not None), None)
        self.macs[name] = self.macs.get(name, 0) + formula(*args, out=result)
        return result


def _memory(tensor: Tensor) -> int:
    """The same for a parameter and all views on it."""
    return tensor.untyped_storage()._cdata
