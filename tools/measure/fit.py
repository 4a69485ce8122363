"""Errors of the representations on one matrix, at equal bytes: the tables of experiments/sigmoid.md and speed.md.

python tools/measure/fit.py                                      # a synthetic 128 x 256 matrix
python tools/measure/fit.py --checkpoint FILE.pth --weight KEY   # a weight of a checkpoint
python tools/measure/fit.py --published 200000                   # the published recipe, and the fit to its error
"""

from __future__ import annotations

import argparse
import math
import time

import torch
from torch import Tensor

from mmriem.core import get_representation
from mmriem.core.errors import RiemError
from mmriem.core.representations.sigmoid.fitter import SigmoidFitter
from mmriem.core.representations.sigmoid.settings import SigmoidSettings
from mmriem.core.torch_versions import fused_adam
from mmriem.core.weights.views import WeightView
from mmriem.engine import read_checkpoint
from mmriem.engine.command_line import run

PAPER = SigmoidSettings(dq=52, dmu=14, shifts=6, row_blocks=1, col_blocks=1, state_bits=8)
"""The paper's configuration for a 128 x 256 matrix: 24,435 parameters."""


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description='Errors of the representations on one matrix, at equal bytes')
    parser.add_argument('--checkpoint', help='a .pth file')
    parser.add_argument('--weight', help='state-dict key in it')
    parser.add_argument('--ratios', nargs='+', type=float, default=[0.10, 0.19, 0.30])
    parser.add_argument('--state-bits', nargs='+', type=int, default=[8, 0], help='0: by the budget')
    parser.add_argument('--effort', type=float, default=1.0)
    parser.add_argument(
        '--published',
        type=int,
        metavar='N',
        help='instead: N steps of the published recipe, and how soon fits get there',
    )
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


class Published:
    """The published recipe with the gradients of one pass in place, three times as fast as those of autograd.

    States uniform in -2 .. 2 (of 1, 2 and 4 the range with the lowest error after 3,000 steps), everything else as
    ``nn.Linear`` starts; Adam at 5e-5 on the squared error of the whole matrix.
    """

    def __init__(self, matrix: Tensor, seed: int = 0) -> None:
        dq, dmu, shifts = PAPER.dq, PAPER.dmu, PAPER.shifts
        generator = torch.Generator().manual_seed(seed)

        def uniform(spread: float, *shape: int) -> Tensor:
            return (torch.rand(*shape, generator=generator) * 2 - 1) * spread

        states = [uniform(2.0, neurons, dq) for neurons in matrix.shape]
        linears = [uniform(dq**-0.5, shifts, dmu, dq), uniform(dq**-0.5, shifts, dmu)]
        self.matrix = matrix
        self.parameters = [*states, *linears, uniform(dmu**-0.5, dmu), uniform(dmu**-0.5, 1)]
        self.optimiser = fused_adam(self.parameters, lr=5e-5)
        self._sigmoids = torch.empty(*matrix.shape, shifts * dmu)

    def step(self) -> None:
        """One step of Adam."""
        q, p, metric = self.parameters[:3]
        shifts, dmu, dq = metric.shape
        rows, columns = metric.reshape(-1, dq), self._columns()
        s, mixing = self._evaluate(q, p)
        upstream = self._residual(s, mixing) * (2 / self.matrix.numel())
        mixing_gradient = torch.mv(s.view(-1, len(mixing)).T, upstream.reshape(-1)).view(shifts, dmu).sum(0)
        torch.addcmul(s, s, s, value=-1, out=s).mul_(mixing).mul_(upstream[..., None])
        by_row, by_column = s.sum(1), s.sum(0)
        metric_gradient = (by_row.T @ q).view(shifts, dmu, dq)
        shifted = (by_column.T @ p).view(shifts, dmu, dq)
        back = torch.stack([torch.roll(shifted[k], -(k * dq // shifts), -1) for k in range(shifts)])
        gradients = [by_row @ rows, by_column @ columns, metric_gradient + back, by_row.sum(0).view(shifts, dmu)]
        for parameter, gradient in zip(self.parameters, [*gradients, mixing_gradient, upstream.sum()[None]]):
            parameter.grad = gradient
        self.optimiser.step()

    def errors(self) -> tuple[float, float]:
        """In dB, with float states and with states rounded to 8 bits."""
        q, p = self.parameters[:2]
        found = []
        for states in ((q, p), (_rounded(q), _rounded(p))):
            residual = self._residual(*self._evaluate(*states))
            found.append(decibels(self.matrix, self.matrix + residual))
        return found[0], found[1]

    def _columns(self) -> Tensor:
        metric = self.parameters[2]
        shifts, _, dq = metric.shape
        return torch.cat([torch.roll(metric[k], k * dq // shifts, -1) for k in range(shifts)])

    def _evaluate(self, q: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
        metric, b, w = self.parameters[2:5]
        rows = q @ metric.reshape(-1, metric.shape[-1]).T + b.reshape(-1)
        sums = torch.add(rows[:, None], p @ self._columns().T, out=self._sigmoids)
        return sums.sigmoid_(), w.repeat(len(metric))

    def _residual(self, sigmoids: Tensor, mixing: Tensor) -> Tensor:
        return self.parameters[5] + sigmoids @ mixing - self.matrix


def _rounded(states: Tensor) -> Tensor:
    """To the nearest of 256 levels between the minimum and the maximum of each column."""
    low, high = states.amin(0), states.amax(0)
    step = (high - low) / 255
    return low + ((states - low) / step).round() * step


def compare_published(matrix: Tensor, steps: int) -> None:
    """Print the error of the published recipe over its steps, and the fits of as many bytes until one is as good."""
    recipe, started = Published(matrix), time.process_time()
    marks = {round(10 ** (number / 10)) for number in range(20, 70)} | {steps}
    for done in range(1, steps + 1):
        recipe.step()
        if done in marks:
            spent = time.process_time() - started
            error, rounded = recipe.errors()
            print(f'published, {done:7,} steps: {error:.2f} dB, 8-bit states {rounded:.2f} dB, {spent:.1f} s of CPU')
    shape = tuple(matrix.shape)
    for name, wanted, budget in (
        ('8-bit states', rounded, PAPER.payload_bits(shape)),
        ('float states, a third of their bytes', error, 32 * PAPER.parameter_count(shape) // 3),
    ):
        print(f'to the error with {name}, {wanted:.2f} dB:')
        reach(matrix, wanted, budget, spent)


def reach(matrix: Tensor, wanted: float, budget: int, spent: float) -> None:
    """Print fits of at most ``budget`` bits until one has the wanted error (dB), and the share of ``spent``."""
    settings = SigmoidFitter().configure(tuple(matrix.shape), budget)
    for effort in (1, 1.5, 2, 3, 4, 6):
        begun = time.process_time()
        found = decibels(matrix, SigmoidFitter(effort=effort).fit(matrix, settings).decode())
        own = time.process_time() - begun
        print(f'{budget // 8:,} bytes, effort {effort}: {found:.2f} dB in {own:.2f} s of CPU, 1 / {spent / own:.0f}')
        if found <= wanted:
            break


def main() -> None:
    """Print the tables."""
    args = parse_args()
    torch.set_num_threads(args.threads)
    matrix = matrix_of(args)
    if args.published is not None:
        compare_published(matrix, args.published)
        return
    shape = tuple(matrix.shape)
    if args.checkpoint is None:
        count = PAPER.parameter_count(shape)
        print(f'{shape[0]} x {shape[1]}, Dq 52, Dmu 14, {count:,} parameters, 8-bit states')
        print(f'  SVD of rank 64 ({64 * sum(shape):,} parameters), not quantised: {truncated(matrix, 64):.2f} dB')
        for effort in (args.effort, 5 * args.effort):
            started = time.perf_counter()
            fitted = SigmoidFitter(effort=effort).fit(matrix, PAPER)
            seconds = time.perf_counter() - started
            print(f'  sigmoid, effort {effort:g}: {decibels(matrix, fitted.decode()):.2f} dB in {seconds:.1f} s')
    for ratio in args.ratios:
        for bits in args.state_bits:
            for name in ('sigmoid', 'bilinear'):
                fitter = get_representation(name).fitter_with(state_bits=bits, effort=args.effort)
                settings = fitter.configure(shape, 32 * ratio * matrix.numel())
                started = time.perf_counter()
                fitted = fitter.fit(matrix, settings)
                seconds = time.perf_counter() - started
                print(
                    f'ratio {fitted.payload_bits() / 32 / matrix.numel():.4f}  {name:8s}  '
                    f'{bits or "budget"} bits: {decibels(matrix, fitted.decode()):7.2f} dB in '
                    f'{seconds:5.1f} s  {fitted.settings_json()}'
                )


if __name__ == '__main__':
    run(main)
