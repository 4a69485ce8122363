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
from ..file.dense import store
from ..file.derived import derive
from ..file.folded_norms import NormView, find_norms, rounded_norms
from ..file.manifest import Source
from ..file.vectors import (
    LEAST_PRECISION,
    NORM_PRECISION,
    PRECISION,
    encode,
    find_vectors,
    precision_for,
    quantise,
)
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

    def stored_bytes(self, key: str, tensor: Tensor) -> int:
        """What a norm or bias takes of a file, as coarse as can be."""
        if derive(key, tensor):
            return 0
        record = quantise(key, tensor, self._vectors[key], LEAST_PRECISION) if key in self._vectors else None
        return len(encode([record])) if record else store(key, tensor).layout.n_bytes

    def rest_bits(self, state_dict: Mapping[str, Tensor], rate: float) -> int:
        """Bits of a file with everything but the weights, next to weights of that rate."""
        covered = {key for view in self.views for key in (view.name, *view.aliases)}
        rest = {key: tensor for key, tensor in state_dict.items() if key not in covered}
        return 8 * len(self.archive({}, rest, rate).to_bytes())


@dataclass(frozen=True, eq=False)
class Fitting:
    """An archive within its limit.

    Attributes:
        archive: what is written.
        uncorrected: modules whose norms and biases stay as they were, because corrected ones have no room.
    """

    archive: Archive
    uncorrected: tuple[str, ...] = ()


def archive_within(
    frame: Frame,
    weights: EncodedWeights,
    corrected: Mapping[str, Tensor],
    original: Mapping[str, Tensor],
    rate: float,
    limit: float = math.inf,
) -> Fitting:
    """The archive of a file of at most ``limit`` bits: norms and biases are rounded as coarsely as that takes.

    Where even the coarsest take too much, some stay as they were: those that grew most, as few as that takes.

    Args:
        frame: what the file holds whatever its weights are.
        weights: of the file.
        corrected: the state dict with corrected norms and biases.
        original: the state dict that the weights were sized with.
        rate: bits of a weight.
        limit: bits of the file.

    Raises:
        RiemError: the original norms and biases take too much, too.
    """

    def within(state: Mapping[str, Tensor], coarsest: int = 0) -> Archive | None:
        for coarser in range(coarsest, most + 1):
            archive = frame.archive(weights, state, rate, coarser)
            if 8 * len(archive.to_bytes()) <= limit:
                return archive
        return None

    def mixed(count: int) -> dict[str, Tensor]:
        return {**corrected, **{key: original[key] for _, keys in grown[:count] for key in keys}}

    most = precision_for(rate) - LEAST_PRECISION
    if archive := within(corrected):
        return Fitting(archive)
    grown = _grown(frame, corrected, original)
    too_few, enough = 0, len(grown)
    while enough - too_few > 1:
        count = (too_few + enough) // 2
        too_few, enough = (too_few, count) if within(mixed(count), most) else (count, enough)
    if archive := within(mixed(enough)):
        return Fitting(archive, tuple(name for name, _ in grown[:enough]))
    size = len(frame.archive(weights, original, rate, most).to_bytes())
    raise RiemError(f'budget: expected a file of {limit / 8:.0f} bytes, found {size}; ask for more')


def _grown(
    frame: Frame, corrected: Mapping[str, Tensor], original: Mapping[str, Tensor]
) -> list[tuple[str, list[str]]]:
    """Modules with their keys that were corrected, those first that take most bytes more than before."""
    by_module: dict[str, list[str]] = {}
    owners: dict[int, str] = {}  # a tensor of several modules stays one
    for key, tensor in corrected.items():
        if tensor is not original[key]:
            owner = owners.setdefault(id(tensor), key.rpartition('.')[0])
            by_module.setdefault(owner, []).append(key)

    def growth(keys: list[str]) -> int:
        return sum(frame.stored_bytes(key, corrected[key]) - frame.stored_bytes(key, original[key]) for key in keys)

    return sorted(by_module.items(), key=lambda item: -growth(item[1]))
