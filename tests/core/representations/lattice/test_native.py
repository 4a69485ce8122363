"""The compiled search and the compiled decoding of a lattice give what the Python beside them gives."""

import numpy as np
import pytest
import torch
from torch import nn

from mmriem.core.coding import native as decoder
from mmriem.core.coding import trellis
from mmriem.core.file.manifest import Source
from mmriem.core.file.reading import from_bytes
from mmriem.core.pipeline.compress import compress
from mmriem.core.pipeline.settings import Settings
from mmriem.core.representations.lattice import native, trellis_search
from mmriem.core.representations.lattice.codec import Lattice
from mmriem.core.representations.lattice.fitter import LatticeStepper

pytestmark = pytest.mark.skipif(native.module is None, reason='the C code of mmriem was not compiled')


def same(work):
    """What it comes to, an array, which is the same in Python and compiled."""
    compiled = work()
    module, native.module = native.module, None
    try:
        plain = work()
    finally:
        native.module = module
    assert (plain.dtype, plain.shape, plain.tobytes()) == (compiled.dtype, compiled.shape, compiled.tobytes())
    return compiled


def test_the_format_is_that_of_python():
    compiled = dict(native.module.FORMAT)
    assert compiled.pop('NEXT') == trellis.NEXT.tobytes()
    assert compiled == {name: getattr(trellis_search, name) for name in compiled}


def test_threads_help_where_the_search_is_compiled(monkeypatch):
    assert LatticeStepper(trellis=True).useful_threads(3) == 3
    assert LatticeStepper(trellis=False).useful_threads(3) == 1
    monkeypatch.setattr(native, 'module', None)
    assert LatticeStepper(trellis=True).useful_threads(3) == 1


@pytest.mark.parametrize(
    ('rows', 'columns', 'cancels'), [(30, 60, True), (5, 128, True), (40, 50, False), (1, 1, True)]
)
@pytest.mark.parametrize('scale', [0.3, 1.5, 6.0, 200.0, 1e7])
def test_searches(rows, columns, cancels, scale):
    rng = np.random.default_rng(0)
    weight = rng.normal(0, scale, (rows, columns)).astype(np.float32)
    target = weight + rng.normal(0, 0.2, (rows, columns)).astype(np.float32)
    factor = (np.eye(columns) + np.triu(rng.normal(0, 0.3, (columns, columns)), 1)).astype(np.float32)
    scales = [np.exp(rng.normal(0, 0.4, columns)).astype(np.float32) for _ in range(2)]
    table = trellis_search.prices(weight / scales[0])
    start = rng.integers(0, 8, rows).astype(np.uint8)

    def work():
        states = start.copy()
        columns = trellis_search.Columns(factor if cancels else None, *scales, table)
        codes, errors = trellis_search.search(weight, target, columns, states)
        return np.concatenate([codes.astype(np.float64), errors[:, None], states[:, None]], 1)

    same(work)


@pytest.mark.parametrize('period', [1, 9])
def test_weights(period):
    rng = np.random.default_rng(3)
    exponents = [rng.integers(-30, 30, size).astype(np.int32) for size in (70, 90)]
    lattice = Lattice.of(rng.integers(-9, 10, (70, 90)).astype(np.int8), 0.0173, *exponents, period)
    same(lambda: lattice.decode().numpy())


def test_weights_that_float32_cannot_hold():
    huge = np.full(4, 2000, np.int32)
    lattice = Lattice.of(np.ones((4, 4), np.int8), 1.0, huge, huge, 1)
    same(lambda: lattice.decode().numpy())
    assert torch.isinf(lattice.decode()).all()


def test_whole_files(monkeypatch):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(8, 24, 3), nn.BatchNorm2d(24), nn.Conv2d(24, 24, 3, groups=2), nn.Conv2d(24, 16, 1))

    def written():
        source = Source('net.pth', 64 * 'a')
        return compress(net, Settings.of(bits=4.0, min_numel=64), dataset_meta={}, source=source).archive.to_bytes()

    data = written()
    decoded = from_bytes(data).decode()
    monkeypatch.setattr(native, 'module', None)
    monkeypatch.setattr(decoder, 'module', None)
    assert written() == data
    assert all(torch.equal(decoded[key], tensor) for key, tensor in from_bytes(data).decode().items())


def test_a_search_of_other_sizes_is_refused():
    def work(rows=3, columns=4, state=0, table=128, factor=16):
        matrices = (np.ones((rows, columns), np.float32), np.ones((3, 4), np.float32))
        factor = np.ones(factor, np.float32)
        ends = np.full(3, state, np.uint8), np.empty((3, 4), np.float32), np.zeros(3)
        steps, pivots = np.ones(4, np.float32), np.ones(4, np.float32)
        native.module.search(*matrices, factor, steps, pivots, np.ones(table, np.float32), *ends)

    work()
    for wrong in (dict(rows=2), dict(columns=5), dict(state=8), dict(table=127), dict(factor=15)):
        with pytest.raises(ValueError, match='other sizes'):
            work(**wrong)


@pytest.mark.parametrize('count', [16, 21])
def test_weights_of_other_sizes_are_refused(count):
    with pytest.raises(ValueError, match='other sizes'):
        native.module.dequantise(np.empty((4, 5), np.float32), np.ones(4), np.ones(5), np.ones(count, np.int8))
