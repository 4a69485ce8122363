"""States of low-rank matrices as float tensors."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from ..base import LiveStates
from ..blocks import EVERYTHING, Block, Factor, PackedTensor, State, spans
from ..grid import STATE_BITS
from .codec import Bilinear
from .rounding import exponent_of, rounded, weights_of_rows
from .settings import CANDIDATE_BITS, BilinearBudget, BilinearSettings, Configuration, candidates, payload_bits


class BilinearStates(LiveStates[Bilinear, Configuration]):
    """``q`` ``(out, rank)`` and ``p`` ``(in, rank)``."""

    state_names = ('q', 'p')

    def from_states(
        self, states: Mapping[str, Tensor], configuration: Configuration | None, kernel_size: int = 1
    ) -> Bilinear:
        weight = self.regenerate(states)
        exponent = exponent_of(weight)
        q, p = (states[name] * 2.0**-exponent for name in self.state_names)
        scaled = (weight.double() * 4.0**-exponent).float()
        bits = _state_bits((len(q), len(p)), q.shape[1], configuration)
        return rounded(scaled, q, p, bits, None, weights_of_rows(None, weight), exponent)

    def regenerate(self, states: Mapping[str, Tensor]) -> Tensor:
        return states['q'] @ states['p'].T

    def random_states(self, shape: tuple[int, int], configuration: Configuration) -> dict[str, Tensor]:
        """Of the highest rank among the sizes that the configuration leaves open."""
        rank = max(rank for rank, _, _ in candidates(shape, configuration))
        return {name: torch.randn(neurons, rank) for name, neurons in zip(self.state_names, shape)}

    def scaled_states(self, states: Mapping[str, Tensor], gain: float, shift: float) -> dict[str, Tensor]:
        return {name: value * gain**0.5 for name, value in states.items()}

    def packed_states(self, encoded: Bilinear) -> dict[str, State]:
        unit = 2.0**encoded.exponent
        return {name: PackedTensor.of(codes, encoded.grids[name], unit) for name, codes in encoded.codes.items()}

    def pack_states(self, states: Mapping[str, Tensor], configuration: Configuration) -> dict[str, State]:
        bits = configuration.state_bits if isinstance(configuration, BilinearSettings) else min(CANDIDATE_BITS)
        return {name: PackedTensor.nearest(state, bits) for name, state in states.items()}

    def rows(self, states: Mapping[str, State]) -> int:
        return states['q'].shape[0]

    def blocks(self, states: Mapping[str, State], most: int, kernel_size: int = 1) -> Iterator[Block]:
        p = states['p'][EVERYTHING]
        for part in spans(0, self.rows(states), max(1, most // len(p))):
            yield Block(EVERYTHING, part, {'q': states['q'][part], 'p': p})

    def factors(self, grouped: bool = False) -> tuple[Factor, ...]:
        """Two thin products: ``p^T`` by its columns, then ``q`` by its rows."""
        return super().factors(grouped) if grouped else (_INPUT_SIDE, _OUTPUT_SIDE)


def _input_blocks(states: Mapping[str, State], most: int, kernel_size: int) -> Iterator[Block]:
    p = states['p']
    for part in spans(0, p.shape[0], kernel_size * max(1, most // (kernel_size * p.shape[1]))):
        yield Block(part, EVERYTHING, {'p': p[part]})


def _output_blocks(states: Mapping[str, State], most: int, kernel_size: int) -> Iterator[Block]:
    q = states['q']
    for part in spans(0, q.shape[0], max(1, most // q.shape[1])):
        yield Block(EVERYTHING, part, {'q': q[part]})


_INPUT_SIDE = Factor(('p',), lambda states: states['p'].shape[1], _input_blocks, lambda states: states['p'].T)
_OUTPUT_SIDE = Factor(('q',), lambda states: states['q'].shape[0], _output_blocks, lambda states: states['q'])


def _state_bits(shape: tuple[int, int], rank: int, configuration: Configuration | None) -> int:
    """As configured; for a budget the most that it allows states of this rank, all of them if it allows none."""
    if isinstance(configuration, BilinearSettings):
        return configuration.state_bits
    budget = configuration.bits if isinstance(configuration, BilinearBudget) else math.inf
    allowed = [bits for bits in CANDIDATE_BITS if payload_bits(shape, rank, bits) <= budget]
    return max(allowed, default=STATE_BITS[1])
