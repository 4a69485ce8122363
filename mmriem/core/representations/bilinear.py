"""The ``bilinear`` representation: ``W_ij = q_i . p_j``, low rank, the SVD family.

With the identity as metric the states are the truncated singular value decomposition, the best approximation of
that rank. With an input metric ``A = L L^T`` and output weights ``g`` it is the best one in the weighted norm: the
SVD of ``diag(g)^(1/2) W L``, mapped back. Both state matrices are then rounded to the grid in turn, each in the
metric that the other one induces, so that rounding errors compensate each other.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from ..coding import exact
from ..coding.packing import PayloadReader, float_bytes, pack, packed_bytes
from ..errors import RiemError
from ..execution.tasks import Progress
from .base import Demand, Representation, Work, check_settings, check_weight, register
from .blocks import EVERYTHING, Block, Factor, PackedTensor, State, spans
from .grid import STATE_BITS, Grid

MAX_RANK = 1 << 16
BOUNDS = {'rank': (1, MAX_RANK), 'state_bits': STATE_BITS}
EXPONENTS = (-80, 80)
ORDINARY_EXPONENT = 6
"""Weights of a root mean square of ``4**-6`` to ``4**6`` have states whose grids are normal float16 numbers."""
CANDIDATE_BITS = (4, 5, 6, 7, 8)
"""State bits that are tried where the settings leave them open."""
DAMPINGS = (1e-6, 1e-5, 1e-4, 1e-3)
"""Of a metric of unit mean: the least one that makes up for what float32 sums have left below zero."""
PRODUCTS = 12
"""Multiply-adds of a core in a nanosecond, in a product of float64 matrices."""
REFINEMENTS = 2
"""Rounds of alternating rounding."""


@register
class Bilinear(Representation):
    """Quantised states ``q`` ``(out, rank)`` and ``p`` ``(in, rank)`` with a grid each.

    The grids, float16 in the file, hold the states in units of ``2**exponent``, so that weights of any scale fit.
    """

    name = 'bilinear'
    state_names = ('q', 'p')

    def __init__(self, q_codes: Tensor, p_codes: Tensor, q_grid: Grid, p_grid: Grid, exponent: int) -> None:
        self.shape = (q_codes.shape[0], p_codes.shape[0])
        self._codes = (q_codes, p_codes)
        self._grids = (q_grid, p_grid)
        self._exponent = exponent

    @classmethod
    def configure(cls, shape: tuple[int, int], bits: float, **options: Any) -> dict[str, Any] | None:
        """Options: ``state_bits`` (0: tried out by the fit) and ``rank`` (0: the highest that fits)."""
        bits = int(bits)
        state_bits = options.get('state_bits') or 0
        if not state_bits:
            return {'budget': bits} if _highest_rank(shape, bits, min(CANDIDATE_BITS)) else None
        rank = min(options.get('rank') or _highest_rank(shape, bits, state_bits), min(shape))
        if rank < 1 or _payload_bits(shape, rank, state_bits) > bits:
            return None
        settings = {'rank': rank, 'state_bits': state_bits}
        check_settings(cls.name, settings, BOUNDS)
        return settings

    @classmethod
    def planned_bits(cls, shape: tuple[int, int], settings: dict[str, Any]) -> int:
        if 'budget' in settings:
            return max(bits for _, _, bits in _candidates(shape, settings))
        return _payload_bits(shape, settings['rank'], settings['state_bits'])

    @classmethod
    def fit(
        cls,
        weight: Tensor,
        settings: dict[str, Any],
        *,
        input_metric: Tensor | None = None,
        output_weights: Tensor | None = None,
        seed: int = 0,
        seeds: int = 1,
        effort: float = 1.0,
        progress: Progress | None = None,
    ) -> Bilinear:
        """Closed form, so ``seed``, ``seeds`` and ``effort`` change nothing. See :class:`Representation`."""
        check_weight(weight, input_metric, output_weights)
        check_settings(cls.name, settings, {'budget': (1, 1 << 62)} if 'budget' in settings else BOUNDS)
        exponent = _exponent(weight)
        weight = (weight.detach().double() * 4.0**-exponent).float()
        metric = _of_unit_mean(input_metric, weight.device)
        root, metric = (None, None) if metric is None else _square_root(metric)
        row_weights = _row_weights(output_weights, weight)
        scale = row_weights.sqrt()
        whitened = scale[:, None] * weight
        left, singular, right = torch.linalg.svd(whitened if root is None else whitened @ root, full_matrices=False)
        best, best_error = None, math.inf
        candidates = _candidates(tuple(weight.shape), settings)
        if not candidates:
            raise RiemError(f'a budget of {settings["budget"]} bits is too small for a matrix of {tuple(weight.shape)}')
        for number, (rank, bits, _) in enumerate(candidates):
            if progress:
                progress(number / len(candidates))
            if float(singular[rank:].square().sum()) > best_error:
                continue  # cutting off that much is worse than all of an earlier one's errors
            balance = singular[:rank].sqrt()
            q = left[:, :rank] * balance / scale[:, None]
            p = right[:rank].T * balance
            if root is not None:
                p = torch.linalg.solve_triangular(root.T, p, upper=True)
            fitted = cls._round(weight, q, p, bits, metric, row_weights, exponent)
            error = weighted_error(weight.cpu(), fitted.decode().double() * 4.0**-exponent, metric, row_weights)
            if error < best_error:
                best, best_error = fitted, error
        if progress:
            progress(1.0)
        return best

    @classmethod
    def _round(
        cls,
        weight: Tensor,
        q: Tensor,
        p: Tensor,
        bits: int,
        metric: Tensor | None,
        row_weights: Tensor,
        exponent: int,
    ) -> Bilinear:
        q_grid, p_grid = Grid.between(q, bits), Grid.between(p, bits)
        q_codes, p_codes = q_grid.nearest(q), p_grid.nearest(p)
        weighted = weight if metric is None else weight @ metric.to(weight)
        for _ in range(REFINEMENTS):
            # given q, the best p solves (q^T g q) p_j = q^T g w_j, whatever the input metric
            q = q_grid.values(q_codes)
            through = q.T * row_weights
            p_codes = _round_solution(through.double() @ q.double(), through @ weight, p_grid)
            p = p_grid.values(p_codes)
            if metric is None:
                gram, right_side = p.T.double() @ p.double(), p.T @ weighted.T
            else:  # states are large where the metric is small: float32 does not do
                gram, right_side = p.T.double() @ metric @ p.double(), p.T.double() @ weighted.T.double()
            q_codes = _round_solution(gram, right_side, q_grid)
        return cls(q_codes.cpu(), p_codes.cpu(), q_grid.cpu(), p_grid.cpu(), exponent)

    @property
    def symbols(self) -> int:
        return sum(codes.numel() for codes in self._codes)

    def settings(self) -> dict[str, Any]:
        exponent = {'exponent': self._exponent} if self._exponent else {}
        return {'rank': self._codes[0].shape[1], 'state_bits': self._grids[0].bits, **exponent}

    def to_payload(self) -> bytes:
        pieces = [float_bytes(x, '<f2') for grid in self._grids for x in (grid.low, grid.step)]
        return b''.join(pieces + [pack(codes, self._grids[0].bits) for codes in self._codes])

    @classmethod
    def demand(cls, shape: tuple[int, int], settings: dict[str, Any]) -> Demand:
        scaled = isinstance(settings, dict) and 'exponent' in settings
        check_settings(cls.name, settings, {**BOUNDS, 'exponent': EXPONENTS} if scaled else BOUNDS)
        rank, size = settings['rank'], _payload_bits(shape, settings['rank'], settings['state_bits']) // 8
        return Demand(sum(shape) * rank, size, size, nanoseconds=shape[0] * shape[1] * rank // PRODUCTS)

    @classmethod
    def from_payload(cls, shape: tuple[int, int], settings: dict[str, Any], payload: bytes) -> Bilinear:
        cls.demand(shape, settings)
        rank, bits, exponent = settings['rank'], settings['state_bits'], settings.get('exponent', 0)
        reader = PayloadReader(payload, _payload_bits(shape, rank, bits) // 8)
        low_q, step_q, low_p, step_p = (reader.floats('<f2', (rank,)) for _ in range(4))
        q_codes, p_codes = (reader.integers(bits, (neurons, rank)) for neurons in shape)
        return cls(q_codes, p_codes, Grid(low_q, step_q, bits), Grid(low_p, step_p, bits), exponent)

    def states(self) -> dict[str, Tensor]:
        unit = 2.0**self._exponent
        return {key: grid.values(codes) * unit for key, grid, codes in zip('qp', self._grids, self._codes)}

    def decode(self) -> Tensor:
        states = self.states()
        return exact.product(states['q'], states['p']).float()

    @classmethod
    def from_states(cls, states: dict[str, Tensor], settings: dict[str, Any] | None, period: int = 1) -> Bilinear:
        weight = cls.regenerate(states)
        exponent = _exponent(weight)
        q, p = (states[name] * 2.0**-exponent for name in cls.state_names)
        scaled = (weight.double() * 4.0**-exponent).float()
        bits = _state_bits(tuple(weight.shape), q.shape[1], settings)
        return cls._round(scaled, q, p, bits, None, _row_weights(None, weight), exponent)

    @classmethod
    def regenerate(cls, states: dict[str, Tensor]) -> Tensor:
        return states['q'] @ states['p'].T

    @classmethod
    def random_states(cls, shape: tuple[int, int], settings: dict[str, Any]) -> dict[str, Tensor]:
        """Of the highest rank among the configurations that the settings leave open."""
        rank = max(rank for rank, _, _ in _candidates(shape, settings))
        return {name: torch.randn(neurons, rank) for name, neurons in zip('qp', shape)}

    @classmethod
    def scaled_states(cls, states: dict[str, Tensor], gain: float, shift: float) -> dict[str, Tensor]:
        return {name: value * gain**0.5 for name, value in states.items()}

    def packed_states(self) -> dict[str, State]:
        unit = 2.0**self._exponent
        return {key: PackedTensor.of(codes, grid, unit) for key, grid, codes in zip('qp', self._grids, self._codes)}

    @classmethod
    def pack_states(cls, states: dict[str, Tensor], settings: dict[str, Any]) -> dict[str, State]:
        bits = settings.get('state_bits') or min(CANDIDATE_BITS)
        return {name: PackedTensor.nearest(state, bits) for name, state in states.items()}

    @classmethod
    def rows(cls, states: Mapping[str, State]) -> int:
        return states['q'].shape[0]

    @classmethod
    def blocks(cls, states: Mapping[str, State], most: int, taps: int = 1) -> Iterator[Block]:
        p = states['p'][EVERYTHING]
        for part in spans(0, cls.rows(states), max(1, most // len(p))):
            yield Block(EVERYTHING, part, {'q': states['q'][part], 'p': p})

    @classmethod
    def factors(cls, grouped: bool = False) -> tuple[Factor, ...]:
        """Two thin products: ``p^T`` by its columns, then ``q`` by its rows."""
        return super().factors(grouped) if grouped else (_INPUT_SIDE, _OUTPUT_SIDE)

    @classmethod
    def regeneration(cls, shape: tuple[int, int], settings: dict[str, Any]) -> list[Work]:
        bits = settings['state_bits']
        return [Work(shape[0] * shape[1] * settings['rank'], (bits, bits))]

    def product(self, positions: int, activation_bits: int, grouped: bool = False) -> list[Work]:
        if grouped:
            return super().product(positions, activation_bits, grouped)
        bits = (self._grids[0].bits, activation_bits)
        return [Work(positions * neurons * self._codes[0].shape[1], bits) for neurons in self.shape[::-1]]


def _input_blocks(states: Mapping[str, State], most: int, taps: int) -> Iterator[Block]:
    p = states['p']
    for part in spans(0, p.shape[0], taps * max(1, most // (taps * p.shape[1]))):
        yield Block(part, EVERYTHING, {'p': p[part]})


def _output_blocks(states: Mapping[str, State], most: int, taps: int) -> Iterator[Block]:
    q = states['q']
    for part in spans(0, q.shape[0], max(1, most // q.shape[1])):
        yield Block(EVERYTHING, part, {'q': q[part]})


_INPUT_SIDE = Factor(('p',), lambda states: states['p'].shape[1], _input_blocks, lambda states: states['p'].T)
_OUTPUT_SIDE = Factor(('q',), lambda states: states['q'].shape[0], _output_blocks, lambda states: states['q'])


def weighted_error(weight: Tensor, other: Tensor, input_metric: Tensor | None, output_weights: Tensor | None) -> float:
    """``sum_i g_i (w_i - w'_i)^T A (w_i - w'_i)``."""
    error = (weight - other).double()
    through = error if input_metric is None else error @ input_metric.to(error)
    per_row = (error * through).sum(1)
    return float(per_row.sum() if output_weights is None else (per_row * output_weights.to(per_row)).sum())


def _candidates(shape: tuple[int, int], settings: dict[str, Any]) -> list[tuple[int, int, int]]:
    """Rank, state bits and payload bits of each configuration that the settings leave open."""
    if 'budget' not in settings:
        ranks = [(settings['rank'], settings['state_bits'])]
    else:
        ranks = [(_highest_rank(shape, settings['budget'], bits), bits) for bits in CANDIDATE_BITS]
    return [(rank, bits, _payload_bits(shape, rank, bits)) for rank, bits in ranks if rank]


def _payload_bits(shape: tuple[int, int], rank: int, bits: int) -> int:
    return 8 * (4 * 2 * rank + sum(packed_bytes(neurons * rank, bits) for neurons in shape))


def _highest_rank(shape: tuple[int, int], budget: float, bits: int) -> int:
    rank = min(int(budget / (sum(shape) * bits + 64)) + 1, min(shape))
    while rank > 0 and _payload_bits(shape, rank, bits) > budget:
        rank -= 1
    return rank


def _state_bits(shape: tuple[int, int], rank: int, settings: dict[str, Any] | None) -> int:
    """As the settings say; for a budget the most that it allows states of this rank, all of them if it allows none."""
    settings = settings or {}
    budget = settings.get('budget', math.inf)
    allowed = [bits for bits in CANDIDATE_BITS if _payload_bits(shape, rank, bits) <= budget]
    return settings.get('state_bits') or max(allowed, default=STATE_BITS[1])


def _exponent(weight: Tensor) -> int:
    """Binary exponent of the unit in which the states of ``weight`` are about 1; 0 where float16 holds them as well."""
    power = float(weight.double().square().mean())
    exponent = round(math.log2(power) / 4) if power else 0
    return exponent if abs(exponent) > ORDINARY_EXPONENT else 0


def _of_unit_mean(metric: Tensor | None, device: torch.device) -> Tensor | None:
    """The metric in float64 with a diagonal of mean 1, which changes no minimum; None for None."""
    if metric is None:
        return None
    metric = metric.detach().to(device, torch.float64)
    return metric / metric.diagonal().mean().clamp_min(1e-300)


def _square_root(metric: Tensor) -> tuple[Tensor, Tensor]:
    """Lower triangular ``L``, and ``L L^T``: a metric of unit mean, slightly damped so that ``L`` exists."""
    for damping in DAMPINGS:
        damped = metric.clone()
        damped.diagonal().add_(damping)
        lower, failed = torch.linalg.cholesky_ex(damped)
        if not failed:
            return lower.float(), damped
    raise RiemError('the input metric is not positive semi-definite')


def _row_weights(output_weights: Tensor | None, weight: Tensor) -> Tensor:
    """Weights of the rows, of mean 1; none so small that the states of its row become noise."""
    if output_weights is None:
        return torch.ones(len(weight), device=weight.device)
    weights = output_weights.detach().to(weight.device, torch.float64)
    return (weights / weights.mean().clamp_min(1e-300)).clamp_min(1e-6).float()


def _round_solution(gram: Tensor, right_side: Tensor, grid: Grid) -> Tensor:
    """Grid integers ``(n, rank)`` near the solution of ``gram x = right_side[:, n]``, rounded in ``gram``.

    In float64, where the slight damping makes even a rank-deficient ``gram`` positive definite.
    """
    damped = gram.double()
    damped.diagonal().add_(1e-6 * gram.diagonal().mean() + 1e-30)
    solution = torch.cholesky_solve(right_side.double(), torch.linalg.cholesky(damped)).T
    return grid.round_in_metric(solution, damped[None])
