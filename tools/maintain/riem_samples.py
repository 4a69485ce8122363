"""Small `.riem` files of every representation and every kind of dense tensor, which campaigns make mutants of.

Imported by the campaigns of this folder; it runs nothing itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from mmriem.core.coding import trellis
from mmriem.core.coding.streams import LANES
from mmriem.core.file.archive import Archive, WeightRecord
from mmriem.core.file.dense import LINEAR, LOGARITHM
from mmriem.core.file.manifest import Source
from mmriem.core.representations.base import Codec
from mmriem.core.representations.bilinear.codec import Bilinear
from mmriem.core.representations.grid import Grid
from mmriem.core.representations.lattice.codec import Lattice
from mmriem.core.representations.lattice.settings import LatticeSettings
from mmriem.core.representations.sigmoid.codec import Sigmoid
from mmriem.core.weights.views import WeightView

Draw = np.random.Generator
Encode = Callable[[WeightView, Draw], Codec]


def lattice(scale: float, along_trellis: bool = False, lanes: int = 1) -> Encode:
    """Integers of that standard deviation."""

    def encode(view: WeightView, draw: Draw) -> Codec:
        shape = view.matrix_shape
        integers = np.rint(draw.normal(0, scale, shape)).astype(np.int64)
        if along_trellis:
            integers = trellis.magnitudes_of(np.abs(integers) // 2) * np.where(draw.random(shape) < 0.5, -1, 1)
        narrow = np.int8 if np.abs(integers).max() < 128 else np.int32
        rows, columns = (draw.integers(-9, 9, size).astype(np.int32) for size in shape)
        settings = LatticeSettings(view.kernel_size, lanes=lanes, trellis=along_trellis)
        return Lattice(integers.astype(narrow), 0.01, rows, columns, settings)

    return encode


def bilinear(view: WeightView, draw: Draw) -> Codec:
    """Of rank 3."""
    rows, columns = view.matrix_shape
    return Bilinear(_codes(draw, rows, 3), _codes(draw, columns, 3), _grid(draw, 3), _grid(draw, 3), -1)


def sigmoid(view: WeightView, draw: Draw) -> Codec:
    """In two tiles."""
    (rows, columns), dq, dmu, shifts = view.matrix_shape, 6, 4, 6
    codes = {'q': _codes(draw, 2, rows, dq), 'p': _codes(draw, 1, columns, dq), 'M': _codes(draw, shifts, dmu, dq)}
    grids = {'q': _grid(draw, dq), 'p': _grid(draw, dq), 'M': _grid(draw, 1)}
    return Sigmoid(codes, grids, torch.zeros(shifts, dmu), torch.ones(dmu) / 8, torch.tensor(0.5))


def _codes(draw: Draw, *sizes: int) -> Tensor:
    return torch.from_numpy(draw.integers(0, 256, sizes, np.uint8))


def _grid(draw: Draw, columns: int) -> Grid:
    low = torch.from_numpy(draw.normal(-1, 0.1, columns)).half().float()
    return Grid(low, torch.full((columns,), 2.0**-7), 8)


CONVOLUTION = WeightView('stem.conv.weight', (8, 4, 3, 3))
LINEAR_LAYER = WeightView('head.fc.weight', (12, 20))
TRANSPOSED = WeightView('neck.up.weight', (6, 4, 2, 2), layout='in_first', groups=2)
EMBEDDING = WeightView('embed', (1, 9, 14), layout='unit_first', dtype=torch.float16)
SHARED = WeightView('a.weight', (10, 15), aliases=('b.weight', 'c.weight'), dtype=torch.bfloat16)

WEIGHTS: dict[str, list[tuple[WeightView, Encode]]] = {
    'lattice': [(CONVOLUTION, lattice(2)), (LINEAR_LAYER, lattice(0.3)), (TRANSPOSED, lattice(40))],
    'lattice, wide': [(CONVOLUTION, lattice(1e4)), (LINEAR_LAYER, lattice(3e7))],
    'lattice, trellis': [(CONVOLUTION, lattice(2, True)), (LINEAR_LAYER, lattice(500, True))],
    'lattice, lanes': [(CONVOLUTION, lattice(2, True, LANES)), (LINEAR_LAYER, lattice(2, False, LANES))],
    'sigmoid': [(CONVOLUTION, sigmoid), (LINEAR_LAYER, sigmoid)],
    'bilinear': [(CONVOLUTION, bilinear), (TRANSPOSED, bilinear), (EMBEDDING, bilinear)],
    'aliases': [(SHARED, lattice(2)), (EMBEDDING, lattice(1, True))],
    'vectors': [(LINEAR_LAYER, lattice(1))],
    'dense': [],
    'derived': [],
    'everything': [
        (CONVOLUTION, lattice(1, True)),
        (LINEAR_LAYER, sigmoid),
        (TRANSPOSED, bilinear),
        (EMBEDDING, lattice(3)),
        (SHARED, lattice(300)),
    ],
}
"""What each sample has of compressed weights."""


def _dense(draw: Draw) -> dict[str, Tensor]:
    numbers = torch.from_numpy(draw.normal(0, 1, (3, 5)))
    mask = torch.zeros(4, 4).masked_fill(torch.ones(4, 4).triu(1).bool(), -math.inf)
    shared = numbers.float() * 3
    return {
        'd.half': numbers.half(),
        'd.single': numbers.float() * 1e-5,
        'd.double': numbers * 1e200,
        'd.bfloat16': numbers.bfloat16(),
        'd.complex': torch.complex(numbers, -numbers),
        'd.integers': torch.arange(11) ** 3,
        'd.flags': torch.tensor([True, False, True]),
        'd.mask': mask,
        'd.one': torch.tensor(0.25),
        'd.none': torch.zeros(0),
        'd.first': shared,
        'd.second': shared,
    }


def _derived(_: Draw) -> dict[str, Tensor]:
    y, x = torch.arange(12) // 4, torch.arange(12) % 4
    window = (y[:, None] - y + 2) * 7 + x[:, None] - x + 3
    return {
        'r.relative_position_index': window,
        'r.num_batches_tracked': torch.tensor(7),
        'r.ones': torch.ones(40),
        'r.flags': torch.zeros(33, dtype=torch.bool),
    }


def _vectors(draw: Draw) -> dict[str, Tensor]:
    return {
        'bn.weight': torch.from_numpy(draw.normal(1, 0.1, 24)).float(),
        'bn.bias': torch.from_numpy(draw.normal(0, 1, 24)).half(),
        'bn.running_var': torch.from_numpy(draw.gamma(2, 1, 24)).float(),
        'ln.weight': torch.from_numpy(draw.normal(0, 1e-9, 17)).double(),
    }


def samples(seed: int = 0) -> dict[str, bytes]:
    """Files by name, a few kilobytes each."""
    return {name: _sample(name, np.random.default_rng([seed, number])) for number, name in enumerate(WEIGHTS)}


def _sample(name: str, draw: Draw) -> bytes:
    records = [WeightRecord.decoded(view, encode(view, draw)) for view, encode in WEIGHTS[name]]
    state = {key: tensor for record, tensor in records for key in (record.view.name, *record.view.aliases)}
    vectors = _vectors(draw) if name in ('vectors', 'everything') else {}
    for kind, made in (('dense', _dense), ('derived', _derived)):
        if name in (kind, 'everything'):
            state.update(made(draw))
    state.update(vectors)
    archive = Archive.from_state_dict(
        state,
        [record for record, _ in records],
        dataset_meta={'classes': ['cat', 'dog'], 'palette': [[0, 0, 255], [1, 2, 3]]},
        source=Source('model.pth', '0' * 64),
        settings={'bits': 2.0, 'include': ['*'], 'seed': 0},
        vectors={key: LOGARITHM if key.endswith('var') else LINEAR for key in vectors},
    )
    return archive.to_bytes()
