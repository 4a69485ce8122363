"""States of matrices of the paper's form as float tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from ..base import LiveStates
from ..blocks import EVERYTHING, Block, PackedTensor, State, spans
from ..grid import STATE_BITS
from .codec import Sigmoid
from .fit import Fit
from .regeneration import STATE_NAMES, Regenerate, random_metric, tile_spans
from .settings import SigmoidSettings


class SigmoidStates(LiveStates[Sigmoid, SigmoidSettings]):
    """``q``, ``p``, the metric ``M``, its offsets ``b``, the mixing weights ``w`` and the constant ``c``."""

    state_names = STATE_NAMES

    def from_states(
        self, states: Mapping[str, Tensor], configuration: SigmoidSettings | None, kernel_size: int = 1
    ) -> Sigmoid:
        (shifts, dmu, dq), q, p = states['M'].shape, states['q'], states['p']
        bits = configuration.state_bits if configuration else STATE_BITS[1]
        fit = Fit(self.regenerate(states), SigmoidSettings(dq, dmu, shifts, len(p), len(q), bits), None, 0)
        fit.start_from(states)
        return Sigmoid(*fit.quantised(lambda: None))

    def regenerate(self, states: Mapping[str, Tensor]) -> Tensor:
        """The same bits as :meth:`Sigmoid.decode`, differentiable; memory grows with one tile, not with the matrix."""
        return Regenerate.apply(*(states[name] for name in self.state_names))

    def random_states(self, shape: tuple[int, int], configuration: SigmoidSettings) -> dict[str, Tensor]:
        metric, b, w, c = random_metric(configuration.dq, configuration.dmu, configuration.shifts)
        q = torch.randn(configuration.col_blocks, shape[0], configuration.dq)
        p = torch.randn(configuration.row_blocks, shape[1], configuration.dq)
        return dict(zip(self.state_names, (q, p, metric, b, w, c)))

    def scaled_states(self, states: Mapping[str, Tensor], gain: float, shift: float) -> dict[str, Tensor]:
        return {**states, 'w': states['w'] * gain, 'c': states['c'] * gain + shift}

    def packed_states(self, encoded: Sigmoid) -> dict[str, State]:
        packed = {key: PackedTensor.of(encoded.codes[key], encoded.grids[key]) for key in 'qp'}
        return {**packed, 'M': encoded.metric(), **encoded.floats}

    def pack_states(self, states: Mapping[str, Tensor], configuration: SigmoidSettings) -> dict[str, State]:
        return {**states, **{key: PackedTensor.nearest(states[key], configuration.state_bits) for key in 'qp'}}

    def rows(self, states: Mapping[str, State]) -> int:
        return states['q'].shape[1]

    def blocks(self, states: Mapping[str, State], most: int, kernel_size: int = 1) -> Iterator[Block]:
        """The rows of a block are all in one tile, and have the column blocks of the matrix."""
        q, p = states['q'], states['p']
        shared = {name: states[name][...] for name in 'Mbwc'}
        for i, tile in enumerate(tile_spans(q.shape[1], p.shape[0])):
            own = p[i : i + 1]
            for part in spans(tile.start, tile.stop, max(1, most // p.shape[1])):
                yield Block(EVERYTHING, part, {'q': q[:, part], 'p': own, **shared})
