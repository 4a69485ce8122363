"""Which levels of a CPU give other bytes when a detector is compressed, and whether any when a file is decoded.

python tools/maintain/compare_arithmetic.py

Each level is a process of its own, lowered by the environment variables of torch, oneDNN and MKL, in which the demo
detector GFL is compressed and the file that this machine writes by itself is decoded.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from mmriem.core.file import reading

ROOT = Path(__file__).parents[2]
LEVELS = (
    {},
    {'ATEN_CPU_CAPABILITY': 'avx2'},
    {'ATEN_CPU_CAPABILITY': 'default'},
    {'ONEDNN_MAX_CPU_ISA': 'AVX2'},
    {'ONEDNN_MAX_CPU_ISA': 'SSE41'},
    {'MKL_CBWR': 'AVX2'},
    {'MKL_CBWR': 'COMPATIBLE'},
)
DECODE = 'import sys; sys.path.insert(0, sys.argv[1]); import compare_arithmetic as c; print(c.decoded(sys.argv[2]))'


def compressed(path: Path, level: dict[str, str]) -> str:
    """SHA-256 of the file that a process of that level writes."""
    detector = [ROOT / 'configs/demo/gfl_r18_fpn_digits.py', ROOT / 'demo/gfl_r18_fpn_digits.pth']
    options = ['--bits', '2', '--image-count', '2', '--threads', '1', '--no-progress', '--out', path]
    run(ROOT / 'tools/compress.py', *detector, *options, level=level)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def decoded(path: str) -> str:
    """SHA-256 of all weights of a file."""
    digest = hashlib.sha256()
    for name, tensor in sorted(reading.read(path).decode().items()):
        digest.update(name.encode() + tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def run(*arguments: object, level: dict[str, str]) -> str:
    """What a program of Python prints at that level."""
    done = subprocess.run(
        [sys.executable, *map(str, arguments)], env={**os.environ, **level}, stdout=subprocess.PIPE, text=True
    )
    if done.returncode:
        sys.exit(done.returncode)
    return done.stdout.strip()


def main() -> None:
    """Print a table in Markdown."""
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f'{number}.riem' for number in range(len(LEVELS))]
        written = [compressed(path, level) for path, level in zip(files, LEVELS)]
        read = [run('-c', DECODE, Path(__file__).parent, files[0], level=level) for level in LEVELS]
    print('| level | the file that is written | the weights that are decoded |\n|---|---|---|')
    for level, *digests in zip(LEVELS, written, read):
        told = ', '.join(f'`{name}={value}`' for name, value in level.items()) or 'as it is'
        same = ['same' if digest == first else 'other' for digest, first in zip(digests, (written[0], read[0]))]
        print(f'| {told} | {same[0]} bytes | {same[1]} bits |')


if __name__ == '__main__':
    main()
