"""Run damaged streams and odd searches through the compiled modules, built with the sanitisers of gcc.

    python tools/maintain/sanitise.py --count 20000 --seed 0

Both modules are built with `-fsanitize=address,undefined` in a temporary folder. A read or write outside of memory, and
anything that C leaves undefined, ends the run with a report. What the decoder says of each stream is compared with the
Python that specifies it, errors included. Prints how many there were of each kind.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import numpy as np

from mmriem.core.coding import entropy, trellis
from mmriem.core.coding import native as decoder
from mmriem.core.coding.streams import LANES
from mmriem.core.errors import RiemError
from mmriem.core.representations.lattice import native as searcher
from mmriem.core.representations.lattice import trellis_search

CORE = Path(__file__).parents[2] / 'mmriem' / 'core'
SOURCES = {'_decoder': CORE / 'coding' / '_decoder.c', '_search': CORE / 'representations' / 'lattice' / '_search.c'}
FLAGS = ('-shared', '-fPIC', '-g', '-O1', '-ffp-contract=off', '-fno-omit-frame-pointer', '-fno-sanitize-recover=all')
SANITISERS = '-fsanitize=address,undefined'
ODD = np.array([0, -0.0, 1e-45, 1e-38, 1e-20, 1, 1e20, 3e38, np.inf, -np.inf, np.nan], np.float32)
"""Numbers that a search is not meant to get; it must not leave its memory for them."""


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description='Damaged streams and odd searches under the sanitisers of gcc')
    parser.add_argument('--count', type=int, default=20000, help='streams, and a tenth as many searches')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--modules', type=Path, help=argparse.SUPPRESS)  # built, by the process that starts this one
    return parser.parse_args()


def build(folder: Path) -> None:
    """Compile both modules into the folder."""
    compiler = shutil.which('gcc')
    if compiler is None:
        raise SystemExit('gcc not found: install it, the sanitisers are its own (Debian: apt-get install gcc)')
    include = f'-I{sysconfig.get_paths()["include"]}'
    for name, source in SOURCES.items():
        subprocess.run([compiler, SANITISERS, *FLAGS, include, source, '-o', folder / f'{name}.so', '-lm'], check=True)


def run_again(folder: Path) -> int:
    """Run this script in a process that has the sanitisers' library from its start."""
    find = ['gcc', '-print-file-name=libasan.so']
    library = subprocess.run(find, capture_output=True, text=True, check=True).stdout.strip()
    # Python and torch keep memory until the end, which is no fault of these modules
    environment = {**os.environ, 'LD_PRELOAD': library, 'ASAN_OPTIONS': 'detect_leaks=0'}
    return subprocess.run([sys.executable, *sys.argv, '--modules', folder], env=environment).returncode


def load(folder: Path, name: str) -> ModuleType:
    """A module that was built there."""
    spec = importlib.util.spec_from_file_location(name, folder / f'{name}.so')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def streams(rng: np.random.Generator) -> Iterator[tuple[str, bytes, Callable[[bytes], np.ndarray]]]:
    """For ever, a kind of stream, its bytes, and what decodes them: matrices and vectors of all sorts."""
    while True:
        rows, channels = (int(rng.integers(0, most)) for most in (24, 16))
        period, lanes = int(rng.choice([1, 1, 2, 9, 80])), int(rng.choice([1, LANES]))
        along_trellis, scale = bool(rng.integers(2)), 10 ** rng.uniform(-1, 4.5)
        shape = rows, channels * period
        symbols = np.rint(rng.normal(0, scale, shape)).astype(np.int64)
        if along_trellis:
            symbols = trellis.magnitudes_of(np.abs(symbols) // 2) * np.where(rng.random(shape) < 0.5, -1, 1)
        options = period, lanes, along_trellis
        data = entropy.encode(symbols, *options)
        yield 'matrix', data, lambda data, shape=shape, options=options: entropy.decode(data, shape, *options)
        vector = np.rint(rng.normal(0, scale, rows)).astype(np.int64)
        yield 'vector', entropy.encode_vector(vector), lambda data, count=rows: entropy.decode_vector(data, count)


def damaged(data: bytes, rng: np.random.Generator) -> bytes:
    """With flipped bits, cut, lengthened, of random bytes, or, one in eight, as it was."""
    way = rng.integers(8)
    if way == 0 or not data:
        return data
    if way == 1:
        return data[: rng.integers(len(data))]
    if way == 2:
        return data + rng.bytes(int(rng.integers(1, 9)))
    if way == 3:
        return rng.bytes(len(data))
    flipped = bytearray(data)
    for _ in range(rng.integers(1, 4)):
        flipped[rng.integers(len(data))] ^= 1 << rng.integers(8)
    return bytes(flipped)


def outcome(work: Callable[[], np.ndarray]) -> str | tuple[str, bytes]:
    """What comes of it, to be compared."""
    try:
        found = work()
    except RiemError as error:
        return str(error)
    return str(found.dtype), found.tobytes()


def decode_all(count: int, rng: np.random.Generator, module: ModuleType) -> Counter:
    """Decode damaged streams both ways; returns how many of each kind there were."""
    counts: Counter = Counter()
    for (kind, data, decode), _ in zip(streams(rng), range(count)):
        data, outcomes = damaged(data, rng), []
        for decoder.module in (None, module):
            outcomes.append(outcome(lambda data=data, decode=decode: decode(data)))
        counts[f'{kind}, {"refused" if isinstance(outcomes[0], str) else "decoded"}'] += 1
        if outcomes[0] != outcomes[1]:
            raise SystemExit(f'{kind} {data.hex()}: expected {outcomes[0]!r:.200}, found {outcomes[1]!r:.200}')
    return counts


def search_all(count: int, rng: np.random.Generator, module: ModuleType) -> Counter:
    """Search with finite numbers, which Python does alike, and with any."""
    counts: Counter = Counter()
    for _ in range(count):
        rows, columns = (int(rng.integers(1, most)) for most in (6, 20))
        parts = [rng.normal(0, 3, shape) for shape in ((rows, columns), (rows, columns), (columns, columns))]
        parts += [np.exp(rng.normal(0, 1, columns)) for _ in range(2)] + [trellis_search.prices(parts[0])]
        weight, target, factor, steps, pivots, table = (part.astype(np.float32) for part in parts)
        if odd := rng.integers(2):
            for part in (weight, target, factor, steps, pivots, table):
                part.reshape(-1)[rng.integers(part.size)] = rng.choice(ODD)
        known = trellis_search.Columns(factor if rng.integers(4) else None, steps, pivots, table)
        start, found = rng.integers(0, 8, rows).astype(np.uint8), []
        for searcher.module in (None, module)[odd:]:
            states = start.copy()
            found.append((*trellis_search.search(weight, target, known, states), states))
        counts[f'search, {"any numbers" if odd else "finite"}'] += 1
        if not odd and any((one != other).any() for one, other in zip(*found)):
            raise SystemExit(f'search {weight!r} {target!r} {known}: expected {found[0]}, found {found[1]}')
    return counts


def main() -> None:
    """Build, start again under the sanitisers, and tell what was run."""
    args = parse_args()
    if args.modules is None:
        with tempfile.TemporaryDirectory() as folder:
            build(Path(folder))
            sys.exit(run_again(Path(folder)))
    rng = np.random.default_rng(args.seed)
    counts = decode_all(args.count, rng, load(args.modules, '_decoder'))
    counts += search_all(args.count // 10, rng, load(args.modules, '_search'))
    for kind, number in sorted(counts.items()):
        print(f'{kind}: {number:,}')


if __name__ == '__main__':
    main()
