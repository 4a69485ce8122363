"""Memory of a linear layer or a convolution that is run without its dense weight, beside that of the dense one.

    python tools/measure/matrix_free.py [--size 4096] [--ratio 0.05] [--training]

Each layer runs in a process of its own, where the operating system tells the memory that is in use (Linux alone). What
is told is the growth since before the layer was built: its states or weight, and at its peak all that a run takes, the
inputs and outputs of the layer included.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mmriem.core.errors import RiemError
from mmriem.core.live.layers import RieMConv2d, RieMLinear

KINDS = ('linear', 'conv')
WAYS = ('dense', 'bilinear', 'sigmoid', 'lattice')
BATCH = 8
PIXELS = 16
"""Height and width of the input of a 3x3 convolution, whose batch is 1."""
WARM_UP = 768
"""Size of a layer that is run first."""
UNCACHED = {
    'MALLOC_MMAP_THRESHOLD_': '65536',
    'MALLOC_TRIM_THRESHOLD_': '65536',
    'MALLOC_ARENA_MAX': '1',
    'MKL_DISABLE_FAST_MM': '1',
}
"""Memory that is freed goes back to the operating system at once."""


def measure(kind: str, way: str, size: int, ratio: float, *, training: bool = False) -> dict[str, Any]:
    """Measure a layer in a process of its own.

    Args:
        kind: ``linear``, of ``size`` inputs and outputs, or ``conv``, 3x3 with a third of the channels.
        way: ``dense``, or the representation of a layer with ``materialize=False``.
        size: see ``kind``.
        ratio: of the states.
        training: run it forward and backward, else in eval mode without gradients.

    Returns:
        ``weight`` (bytes of the dense weight), ``held`` and ``peak`` (bytes), ``seconds`` (of the CPU, one run).

    Raises:
        RiemError: the process failed.
    """
    arguments = [sys.executable, __file__, '--child', json.dumps([kind, way, size, ratio, training])]
    roots = [str(Path(__file__).parents[2]), *filter(None, [os.environ.get('PYTHONPATH')])]
    environment = {**os.environ, **UNCACHED, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': os.pathsep.join(roots)}
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RiemError(f'{kind} {way}: expected figures, found an error: {done.stderr.strip()[-500:]}')
    return json.loads(done.stdout)


def _measure_here(kind: str, way: str, size: int, ratio: float, training: bool) -> dict[str, Any]:
    small, x = _build(kind, way, WARM_UP, ratio)  # code and tables that PyTorch takes once
    with torch.no_grad():
        small.eval()(x)
    del small, x
    torch.manual_seed(0)
    gc.collect()
    before = _memory('VmRSS')
    layer, x = _build(kind, way, size, ratio)
    layer.train(training)
    gc.collect()
    held = _memory('VmRSS') - before
    Path('/proc/self/clear_refs').write_text('5')  # the peak is that of what follows
    started = time.process_time()
    with torch.set_grad_enabled(training):
        y = layer(x)
        if training:
            y.sum().backward()
    seconds = time.process_time() - started
    weight = 4 * size * size if kind == 'linear' else 4 * 9 * (size // 3) ** 2
    return {'weight': weight, 'held': held, 'peak': _memory('VmHWM') - before, 'seconds': seconds}


def _build(kind: str, way: str, size: int, ratio: float) -> tuple[nn.Module, torch.Tensor]:
    """The layer and its input."""
    options = {} if way == 'dense' else dict(representation=way, ratio=ratio, materialize=False)
    if kind == 'linear':
        layer = (nn.Linear if way == 'dense' else RieMLinear)(size, size, **options)
        return layer, torch.randn(BATCH, size)
    layer = (nn.Conv2d if way == 'dense' else RieMConv2d)(size // 3, size // 3, 3, padding=1, **options)
    return layer, torch.randn(1, size // 3, PIXELS, PIXELS)


def _memory(key: str) -> int:
    """Bytes of this process: ``VmRSS``, in use, or ``VmHWM``, the most that were."""
    for line in Path('/proc/self/status').read_text().splitlines():
        if line.startswith(key):
            return 1024 * int(line.split()[1])
    raise RiemError(f'/proc/self/status: expected {key}, found none; this needs Linux')


def main() -> None:
    """Print a line for each layer."""
    parser = argparse.ArgumentParser(description='Memory of layers that run without their dense weight')
    parser.add_argument('--size', type=int, default=4096, help='inputs and outputs of the linear layer (default: 4096)')
    parser.add_argument('--ratio', type=float, default=0.05, help='size of the states to the fp32 weight')
    parser.add_argument('--ways', nargs='+', choices=WAYS, default=WAYS)
    parser.add_argument('--training', action='store_true', help='forward and backward instead of eval mode')
    parser.add_argument('--child', help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(_measure_here(*json.loads(args.child))))
        return
    print(f'| layer | way | weight MiB | held MiB | peak MiB | peak / weight | CPU seconds |\n|{"---|" * 7}')
    for kind in KINDS:
        for way in args.ways:
            found = measure(kind, way, args.size, args.ratio, training=args.training)
            weight, held, peak = (found[key] / 2**20 for key in ('weight', 'held', 'peak'))
            line = (kind, way, f'{weight:.1f}', f'{held:.1f}', f'{peak:.1f}', f'{peak / weight:.3f}')
            print(f'| {" | ".join(line)} | {found["seconds"]:.2f} |', flush=True)


if __name__ == '__main__':
    main()
