"""Errors of the representations on one matrix, at equal bytes: the tables of docs/experiments.md.

python tools/measure_fit.py                                      # a synthetic 128 x 256 matrix
python tools/measure_fit.py --checkpoint FILE.pth --weight KEY   # a weight of a checkpoint
"""

from __future__ import annotations

import argparse
import math
import time

import torch
from torch import Tensor

from mmriem.core import get_representation
from mmriem.core.errors import RiemError
from mmriem.core.sigmoid import Sigmoid, parameter_count
from mmriem.core.surgery import WeightView
from mmriem.engine import read_checkpoint
from mmriem.engine.command_line import run

PAPER = dict(dq=52, dmu=14, shifts=6, row_blocks=1, col_blocks=1, state_bits=8)
"""The paper's configuration for a 128 x 256 matrix: 24,435 parameters."""


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description='Errors of the representations on one matrix, at equal bytes')
    parser.add_argument('--checkpoint', help='a .pth file')
    parser.add_argument('--weight', help='state-dict key in it')
    parser.add_argument('--ratios', nargs='+', type=float, default=[0.10, 0.19, 0.30])
    parser.add_argument('--state-bits', nargs='+', type=int, default=[8, 0], help='0: by the budget')
    parser.add_argument('--effort', type=float, default=1.0)
    parser.add_argument('--threads', type=int, default=1)
    return parser.parse_args()


def synthetic(rows: int = 128, columns: int = 256, seed: int = 0) -> Tensor:
    """A Gaussian matrix whose k-th singular value is made `1 / sqrt(k)`, of unit spread."""
    generator = torch.Generator().manual_seed(seed)
    gaussian = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    left, singular, right = torch.linalg.svd(gaussian, full_matrices=False)
    falling = torch.arange(1, len(singular) + 1, dtype=torch.float64).rsqrt()
    matrix = (left * falling) @ right
    return (matrix / matrix.std()).float()


def matrix_of(args: argparse.Namespace) -> Tensor:
    """The matrix that the command line names.

    Raises:
        RiemError: no such weight.
    """
    if args.checkpoint is None:
        return synthetic()
    state_dict = read_checkpoint(args.checkpoint).state_dict
    if args.weight not in state_dict:
        raise RiemError(f'{args.checkpoint}: expected a weight {args.weight!r}, found no such key')
    tensor = state_dict[args.weight].float()
    return WeightView(args.weight, tuple(tensor.shape)).to_matrix(tensor)


def decibels(matrix: Tensor, other: Tensor) -> float:
    """Squared error over squared values, in dB."""
    return 10 * math.log10(float((matrix - other).double().square().sum() / matrix.double().square().sum()))


def truncated(matrix: Tensor, rank: int) -> float:
    """Error of the best matrix of that rank, not quantised, in dB."""
    singular = torch.linalg.svdvals(matrix.double())
    return 10 * math.log10(float(singular[rank:].square().sum() / singular.square().sum()))


def main() -> None:
    """Print the tables."""
    args = parse_args()
    torch.set_num_threads(args.threads)
    matrix = matrix_of(args)
    shape = tuple(matrix.shape)
    if args.checkpoint is None:
        count = parameter_count(shape, PAPER)
        print(f'{shape[0]} x {shape[1]}, Dq 52, Dmu 14, {count:,} parameters, 8-bit states')
        print(f'  SVD of rank 64 ({64 * sum(shape):,} parameters), not quantised: {truncated(matrix, 64):.2f} dB')
        for effort in (args.effort, 5 * args.effort):
            started = time.perf_counter()
            fitted = Sigmoid.fit(matrix, PAPER, effort=effort)
            seconds = time.perf_counter() - started
            print(f'  sigmoid, effort {effort:g}: {decibels(matrix, fitted.decode()):.2f} dB in {seconds:.1f} s')
    for ratio in args.ratios:
        for bits in args.state_bits:
            for name in ('sigmoid', 'bilinear'):
                kind = get_representation(name)
                settings = kind.configure(shape, 32 * ratio * matrix.numel(), state_bits=bits)
                started = time.perf_counter()
                fitted = kind.fit(matrix, settings, effort=args.effort)
                seconds = time.perf_counter() - started
                print(
                    f'ratio {fitted.payload_bits() / 32 / matrix.numel():.4f}  {name:8s}  '
                    f'{bits or "budget"} bits: {decibels(matrix, fitted.decode()):7.2f} dB in '
                    f'{seconds:5.1f} s  {fitted.settings()}'
                )


if __name__ == '__main__':
    run(main)
