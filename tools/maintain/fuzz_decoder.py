"""Build the target of libFuzzer for the compiled decoder, and let it search: inputs that reach new code are kept.

    python tools/maintain/fuzz_decoder.py --seconds 600 [--corpus work_dirs/fuzz_decoder]

clang (Debian: apt-get install clang libclang-rt-dev) builds it with its address and undefined-behaviour sanitisers. It
starts from streams that are right, of all kinds of matrices and vectors. A read or write outside of memory, what C
leaves undefined, a leak, more than 10 seconds or more than 512 MiB for an input of at most 4096 bytes ends it with exit
status 1, and the input lies in the folder of the corpus.
"""

from __future__ import annotations

import argparse
import shutil
import struct
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from mmriem.core.coding import entropy, trellis
from mmriem.core.coding.context import _PRIOR, _SHRINKAGES
from mmriem.core.coding.streams import LANES, split_lanes

HERE = Path(__file__).parent
DECODER = HERE.parents[1] / 'mmriem' / 'core' / 'coding'
SANITISERS = '-fsanitize=fuzzer,address,undefined'
FLAGS = ('-g', '-O1', '-ffp-contract=off', '-fno-sanitize-recover=all')
LIMITS = ('-timeout=10', '-rss_limit_mb=512', '-max_len=4096', '-print_final_stats=1')
CLANGS = ('clang', *(f'clang-{version}' for version in range(22, 10, -1)))
HEAD = struct.Struct('<6B3H')
"""See fuzz_decoder.c."""
MATRIX, WIDE, VECTOR = range(3)


def find_clang() -> str:
    """Its path.

    Raises:
        SystemExit: there is none.
    """
    found = next(filter(None, map(shutil.which, CLANGS)), None)
    if found is None:
        raise SystemExit('clang not found: install it, libFuzzer is its own (Debian: apt-get install clang)')
    return found


def table(kind: str, name: str, values: np.ndarray) -> str:
    """An array of C; floats in hexadecimal, so that they are the same ones."""
    numbers = values.reshape(-1).tolist()
    spelled = ', '.join(value.hex() if isinstance(value, float) else str(value) for value in numbers)
    return f'static const {kind} {name}[] = {{{spelled}}};\n'


def build(folder: Path) -> Path:
    """The program, compiled in a folder."""
    tables = table('double', 'PRIOR_TABLE', _PRIOR)
    tables += table('double', 'SHRINKAGES_TABLE', _SHRINKAGES)
    tables += table('int64_t', 'WINDOWS_TABLE', entropy._WINDOWS)
    (folder / 'tables.h').write_text(tables)
    program = folder / 'fuzz_decoder'
    folders = [f'-I{path}' for path in (sysconfig.get_paths()['include'], DECODER, folder)]
    subprocess.run(
        [find_clang(), SANITISERS, *FLAGS, *folders, HERE / 'fuzz_decoder.c', '-o', program, '-lm'], check=True
    )
    return program


def inputs(seed: int) -> Iterator[bytes]:
    """Streams that are right, one of each kind and size."""
    draw = np.random.default_rng(seed)
    for lanes in (1, LANES):
        for along_trellis in (0, 1):
            for taps in (1, 4, 9):
                for rows, channels, scale in ((0, 3, 1), (1, 1, 3), (5, 7, 0.2), (9, 20, 2), (40, 9, 6), (6, 5, 1e4)):
                    shape = rows, channels * taps
                    symbols = np.rint(draw.normal(0, scale, shape)).astype(np.int64)
                    if along_trellis:
                        signs = np.where(draw.random(shape) < 0.5, -1, 1)
                        symbols = trellis.magnitudes_of(np.abs(symbols) // 2) * signs
                    data = entropy.encode(symbols, taps, lanes, bool(along_trellis))
                    head = (WIDE if scale > 10 else MATRIX, along_trellis, rows, channels, taps - 1)
                    yield packed(head, split_lanes(data, lanes))
    for count, scale in ((0, 1), (1, 5), (60, 3), (300, 1e6)):
        vector = np.rint(draw.normal(0, scale, count)).astype(np.int64)
        yield packed((VECTOR, 0, count >> 4, count & 15, 0), split_lanes(entropy.encode_vector(vector)))


def packed(head: tuple[int, ...], streams: tuple[bytes, ...]) -> bytes:
    """An input."""
    lengths = [len(stream) for stream in streams[:-1]] or [0, 0, 0]
    return HEAD.pack(*head, len(streams) > 1, *lengths) + b''.join(streams)


def main() -> int:
    """Build, write the first inputs, search."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--seconds', type=int, default=600, help='of searching')
    parser.add_argument('--seed', type=int, default=1, help='of the search; 0 is another one each time')
    parser.add_argument('--corpus', type=Path, default=Path('work_dirs/fuzz_decoder'), help='folder of the inputs')
    args = parser.parse_args()
    args.corpus.mkdir(parents=True, exist_ok=True)
    for number, data in enumerate(inputs(0)):
        (args.corpus / f'right{number:03}').write_bytes(data)
    with tempfile.TemporaryDirectory() as folder:
        program = build(Path(folder))
        search = (f'-max_total_time={args.seconds}', f'-seed={args.seed}', f'-artifact_prefix={args.corpus}/')
        done = subprocess.run([program, *LIMITS, *search, args.corpus])
    return 1 if done.returncode else 0


if __name__ == '__main__':
    sys.exit(main())
