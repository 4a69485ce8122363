"""States that no file holds: fitted to an ordinary weight, or drawn at random with its mean and spread."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import RiemError
from ..execution.tasks import Progress, one_thread
from ..representations.base import Codec, Fitter
from ..representations.registry import Representation, get_representation
from ..weights.views import WeightView

FITTED = 'riem_fitted'
"""Attribute of a tensor of an ordinary checkpoint with the states that were fitted to it: it may be loaded again."""
MIN_SPREAD = 1e-6
"""Least standard deviation of a weight from fresh states: states of zeros would have no gradient."""


@dataclass(frozen=True)
class Fresh:
    """How fresh states of a weight come about.

    Attributes:
        fitter: of their representation.
        configuration: of the fitter; None where the weight is held dense.
    """

    fitter: Fitter[Any, Any]
    configuration: Any | None

    @property
    def is_dense(self) -> bool:
        """Whether there are none: the weight is too small for states."""
        return self.configuration is None

    @property
    def kind(self) -> Representation:
        """Their representation."""
        return get_representation(self.fitter.name)

    def is_fitted(self, tensor: Tensor) -> bool:
        """Whether the tensor has such states with it."""
        return getattr(tensor, FITTED, (None,))[0] == self._identity(tensor)

    def fitted(
        self, key: str, tensor: Tensor, view: WeightView, device: torch.device, progress: Progress | None = None
    ) -> Codec:
        """States fitted to a weight in the Euclidean metric; kept with the tensor.

        Raises:
            RiemError: the tensor is not finite, or the budget is too small for it.
        """
        if not self.is_fitted(tensor):
            matrix = view.to_matrix(tensor.detach()).to(device)
            try:
                with one_thread():
                    encoded = self.fitter.fit(matrix, self.configuration, progress=progress)
            except RiemError as error:
                raise RiemError(f'{key}: {error}') from error
            setattr(tensor, FITTED, (self._identity(tensor), encoded))
        return getattr(tensor, FITTED)[1]

    def drawn(self, wanted: Tensor) -> dict[str, Tensor]:
        """Random states of a matrix with the mean and spread of ``wanted``, ``(out, in)``."""
        live = self.kind.live
        drawn = live.random_states((wanted.shape[0], wanted.shape[1]), self.configuration)
        current = live.regenerate(drawn)
        spread = max(float(wanted.std(unbiased=False)), MIN_SPREAD)
        gain = spread / max(float(current.std(unbiased=False)), 1e-12)
        return live.scaled_states(drawn, gain, float(wanted.mean()) - gain * float(current.mean()))

    def _identity(self, tensor: Tensor) -> tuple[Any, ...]:
        """What a fit depends on."""
        content = tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data
        return self, zlib.crc32(content)
