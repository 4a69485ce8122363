"""States of lattices as float tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor

from ...coding.trellis import indices_of
from ..base import LiveStates
from ..blocks import EVERYTHING, Block, Factor, State, spans
from .codec import Lattice, dequantised
from .exponents import FINE_OCTAVE, MAX_SYMBOL, OCTAVE, half_way, is_on_grid, logarithms, on_grid
from .settings import LatticeBudget


class LatticeStates(LiveStates[Lattice, LatticeBudget]):
    """Integers ``z`` ``(out, in)``, and the steps ``row`` ``(out,)`` and ``column`` ``(in,)``."""

    state_names = ('z', 'row', 'column')
    integer_states = ('z',)

    def from_states(
        self, states: Mapping[str, Tensor], configuration: LatticeBudget | None, kernel_size: int = 1
    ) -> Lattice:
        """Rounds ``z`` to integers, and steps that are on no grid to that of ``FINE_OCTAVE``.

        Integers that still follow paths of the trellis are stored as such; trained ones do not.
        """
        steps = [states[name].detach().double() for name in ('row', 'column')]
        signs = steps[0].sign()[:, None] * steps[1].sign()
        codes = (states['z'].detach().round().clamp(-MAX_SYMBOL, MAX_SYMBOL) * signs).to(torch.int32).numpy()
        logs = [logarithms(x) for x in steps]
        octave = OCTAVE if all(is_on_grid(x, OCTAVE) for x in logs) else FINE_OCTAVE
        (row_step, rows), (column_step, columns) = (on_grid(x, octave) for x in logs)
        trellis = indices_of(np.abs(codes)) is not None
        return Lattice.of(codes, row_step * column_step, rows, columns, kernel_size, octave, trellis)

    def regenerate(self, states: Mapping[str, Tensor]) -> Tensor:
        return states['row'][:, None] * states['column'] * states['z']

    def random_states(self, shape: tuple[int, int], configuration: LatticeBudget) -> dict[str, Tensor]:
        return {'z': torch.randn(shape).mul_(2).round_(), 'row': torch.ones(shape[0]), 'column': torch.ones(shape[1])}

    def scaled_states(self, states: Mapping[str, Tensor], gain: float, shift: float) -> dict[str, Tensor]:
        shared = half_way(gain)
        return {**states, 'row': gain / shared * states['row'], 'column': shared * states['column']}

    def packed_states(self, encoded: Lattice) -> dict[str, State]:
        return _packed(encoded.states())

    def pack_states(self, states: Mapping[str, Tensor], configuration: LatticeBudget) -> dict[str, State]:
        return _packed(states)

    def rows(self, states: Mapping[str, State]) -> int:
        return states['z'].shape[0]

    def blocks(self, states: Mapping[str, State], most: int, kernel_size: int = 1) -> Iterator[Block]:
        z, row, column = (states[name] for name in self.state_names)
        for part in spans(0, z.shape[0], max(1, most // column.shape[0])):
            yield Block(EVERYTHING, part, {'z': z[part], 'row': row[part], 'column': column[EVERYTHING]})

    def applied_states(self, encoded: Lattice) -> dict[str, State]:
        """The integers as they were decoded, and both steps in float64."""
        rows, columns = encoded.steps()
        return {name: torch.from_numpy(x) for name, x in zip(self.state_names, (encoded.codes, rows, columns))}

    def applied_factors(self, grouped: bool = False) -> tuple[Factor, ...]:
        """One, which makes the same bits as :meth:`Lattice.decode`."""
        return (Factor(self.state_names, self.rows, self.blocks, _as_decoded),)

    def can_train_integers(self, encoded: Lattice) -> bool:
        """Not along a trellis, where integers hang together."""
        return not encoded.settings.trellis


def _packed(states: Mapping[str, Tensor]) -> dict[str, State]:
    """The integers in the smallest type that holds them all: there is no access to rows of an entropy coded one."""
    largest = int(states['z'].abs().max())
    small = next(kind for kind in (torch.int8, torch.int16, torch.int32) if largest <= torch.iinfo(kind).max)
    return {**states, 'z': states['z'].to(small)}


def _as_decoded(states: Mapping[str, Tensor]) -> Tensor:
    codes, rows, columns = (states[name].numpy() for name in LatticeStates.state_names)
    return dequantised(rows, columns, codes)
