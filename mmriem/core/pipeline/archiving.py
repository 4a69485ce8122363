"""The stage that archives: weights, norms and biases as one file of at most so many bits."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor, nn

from ..errors import RiemError
from ..file.archive import Archive
from ..file.folded_norms import NormView, find_norms, rounded_norms
from ..file.manifest import Source
from ..file.vectors import LEAST_PRECISION, NORM_PRECISION, PRECISION, find_vectors, precision_for
from ..weights.views import WeightView
from .encoded_weight import EncodedWeights
from .settings import Selection


@dataclass(frozen=True, eq=False)
class Frame:
    """What a file holds whatever its weights are.

    Attributes:
        model: the module.
        views: its weights that may be represented.
        selection: tells which norms and biases may be rounded.
        dataset_meta, source, settings: for the manifest.
    """

    model: nn.Module
    views: tuple[WeightView, ...]
    selection: Selection
    dataset_meta: dict[str, Any]
    source: Source
    settings: dict[str, Any]

    @cached_property
    def _vectors(self) -> dict[str, str]:
        return find_vectors(self.model, self.selection.include, self.selection.exclude)

    @cached_property
    def _norms(self) -> list[NormView]:
        return find_norms(self.model, self._vectors)

    def archive(
        self, weights: EncodedWeights, state_dict: Mapping[str, Tensor], rate: float, coarser: int = 0
    ) -> Archive:
        """With these norms and biases, rounded as goes with weights of ``rate`` bits.

        Args:
            weights: those of the file; those that are left out or dense are taken from the state dict.
            state_dict: everything else.
            rate: bits of a weight.
            coarser: quarter octaves by which the steps of norms and biases are larger.
        """
        views = {view.name: view for view in self.views}
        made = (weight.record(views[name]) for name, weight in weights.items() if weight.encoded is not None)
        records = [record for record in made if record is not None]
        precision, of_norms = (precision_for(rate, least) - coarser for least in (PRECISION, NORM_PRECISION))
        return Archive.from_state_dict(
            state_dict,
            records,
            dataset_meta=self.dataset_meta,
            source=self.source,
            settings=self.settings,
            vectors=self._vectors,
            precision=max(precision, LEAST_PRECISION),
            rounded=rounded_norms(self._norms, state_dict, self._vectors, max(of_norms, LEAST_PRECISION)),
        )

    def rest_bits(self, state_dict: Mapping[str, Tensor], rate: float) -> int:
        """Bits of a file with everything but the weights, next to weights of that rate."""
        covered = {key for view in self.views for key in (view.name, *view.aliases)}
        rest = {key: tensor for key, tensor in state_dict.items() if key not in covered}
        return 8 * len(self.archive({}, rest, rate).to_bytes())


def archive_within(
    frame: Frame, weights: EncodedWeights, state_dict: Mapping[str, Tensor], rate: float, limit: float = math.inf
) -> Archive:
    """The archive of a file of at most ``limit`` bits: norms and biases are rounded as coarsely as that takes.

    Raises:
        RiemError: even the coarsest take too much.
    """
    size = 0
    for coarser in range(precision_for(rate) - LEAST_PRECISION + 1):
        archive = frame.archive(weights, state_dict, rate, coarser)
        size = 8 * len(archive.to_bytes())
        if size <= limit:
            return archive
    raise RiemError(f'budget: expected a file of {limit / 8:.0f} bytes, found {size // 8}; ask for more')
