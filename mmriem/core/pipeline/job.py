"""What a compression works on: the weights of a module, everything else of it, and who works."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from ..correction.recalibration import recalibrated_keys
from ..errors import RiemError
from ..execution.executor import Executor
from ..file.derived import derive
from ..file.vectors import find_vectors
from ..images.probe import Probe
from ..metric.metric import parts
from ..representations.registry import Representation
from ..weights.views import WeightView, find_weights
from .settings import Selection, Settings

RECALIBRATED_SHARE = 0.1
"""Share of itself by which recalibration or tuning is expected to change a constant, such as a variance of 1."""


@dataclass(frozen=True, eq=False)
class Job:
    """One compression: what is there, what is wanted, and who works. Nothing in it changes.

    Attributes:
        model: the module.
        state_dict: of it, on the CPU.
        views: the weights to represent.
        settings: how, defaults filled in.
        device: where fits and the probe run.
        executor: the threads and processes, and the journal.
        recalibrates: whether norms and biases are recalibrated.
        trained: keys of the norms and biases that are trained after that.
        most_error: predicted relative error of the outputs above which a budget is refused.
    """

    model: nn.Module
    state_dict: dict[str, Tensor]
    views: tuple[WeightView, ...]
    settings: Settings
    device: str
    executor: Executor
    recalibrates: bool
    trained: tuple[str, ...]
    most_error: float = math.inf

    @classmethod
    def of(
        cls,
        model: nn.Module,
        settings: Settings,
        probe: Probe | None,
        device: str,
        executor: Executor,
        most_error: float = math.inf,
    ) -> Job:
        """Find the weights, and see that there is something to do.

        Raises:
            RiemError: no weight, a pattern without a match, or nothing to train.
        """
        state_dict = {key: tensor.detach().cpu() for key, tensor in model.state_dict().items()}
        selection = settings.selection
        views = find_weights(model, selection.include, selection.exclude, selection.min_numel)
        if not views:
            raise RiemError('nothing to compress: expected weights with two or more dimensions, found none that match')
        trained = trainable(model, selection) if settings.corrections.tuning else ()
        if settings.corrections.tuning and not trained:
            raise RiemError('tuning: expected norms or biases to train, found none; leave tuning out')
        recalibrates = probe is not None and settings.corrections.recalibration
        return cls(model, state_dict, tuple(views), settings, device, executor, recalibrates, trained, most_error)

    @cached_property
    def elements(self) -> int:
        """Of all weights to represent."""
        return sum(math.prod(view.shape) for view in self.views)

    @cached_property
    def numel(self) -> int:
        """Floating elements of the state dict: what an fp32 checkpoint holds."""
        return numel(self.state_dict)

    @cached_property
    def costs(self) -> dict[str, float]:
        """Predicted CPU seconds of each weight."""
        return {view.name: predicted_seconds(self.settings.fit.kind, view) for view in self.views}

    @cached_property
    def owners(self) -> dict[str, int]:
        """Rank of the process that fits each weight."""
        return dict(zip(self.costs, self.executor.owners(list(self.costs.values()))))

    @property
    def own(self) -> list[str]:
        """Names of the weights of this process."""
        return [name for name, owner in self.owners.items() if owner == self.executor.workers.rank]

    @cached_property
    def expected_state(self) -> dict[str, Tensor]:
        """The state dict with noise on constants that corrections will change: as they are they take no bytes."""
        changed = (recalibrated_keys(self.model) if self.recalibrates else set()) | set(self.trained)
        return _as_if_changed(self.state_dict, changed)

    @property
    def wanted_bits(self) -> float:
        """Bits of the file, of a budget that tells them."""
        return self.settings.budget.file_bits(self.numel, self.elements)

    def matrix(self, view: WeightView) -> Tensor:
        """The weight matrix ``(out, in)`` where fits run."""
        return view.to_matrix(self.state_dict[view.name]).to(self.device)

    def model_on_device(self) -> nn.Module:
        """A copy of the model where fits and the probe run."""
        own = copy.deepcopy(self.model)
        own.to(self.device)
        own.eval()  # which need not give the module back
        return own


def trainable(model: nn.Module, selection: Selection) -> tuple[str, ...]:
    """Norms and biases that are parameters."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    return tuple(key for key in find_vectors(model, selection.include, selection.exclude) if key in parameters)


def predicted_seconds(kind: Representation, view: WeightView) -> float:
    """CPU seconds that the fit of a weight takes, see :meth:`Costs.fit_seconds`."""
    return kind.costs.fit_seconds(view.matrix_shape, [part.stop - part.start for part in parts(view.matrix_shape[1])])


def numel(state_dict: Mapping[str, Tensor]) -> int:
    """Floating elements of a state dict, shared ones counted once."""
    distinct = {tensor.data_ptr(): tensor.numel() for tensor in state_dict.values() if tensor.is_floating_point()}
    return sum(distinct.values())


def _as_if_changed(state_dict: Mapping[str, Tensor], keys: set[str]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    noise: dict[int, Tensor] = {}
    for key, tensor in state_dict.items():
        if key in keys and derive(key, tensor):
            spread = torch.where(tensor == 0, 1.0, RECALIBRATED_SHARE * tensor.abs().double())
            random = tensor + spread * torch.randn(tensor.shape, generator=generator)
            noise.setdefault(tensor.data_ptr(), random.half().to(tensor.dtype))
    return {key: noise.get(tensor.data_ptr(), tensor) for key, tensor in state_dict.items()}
