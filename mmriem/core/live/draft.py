"""A dense weight that initialisers may write to, while states stand for it."""

from __future__ import annotations

import torch
from torch import Tensor


class Draft:
    """A copy of a weight, given out for a while in place of the regenerated one.

    Attributes:
        weight: the copy.
    """

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight.clone()
        self._before = weight.clone()

    @property
    def is_written(self) -> bool:
        """Whether its values have changed."""
        return not torch.equal(self.weight, self._before)
