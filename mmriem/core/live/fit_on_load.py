"""States fitted to the weights of an ordinary checkpoint as it is loaded."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from torch import Tensor, nn

from ..execution.tasks import Task, run_all
from .module import LiveModule
from .states import STATES, WeightStates


@dataclass(frozen=True)
class Unfitted:
    """A weight of an ordinary checkpoint, ``tensor`` of the key ``key``, and the states that are to hold it."""

    key: str
    tensor: Tensor
    states: WeightStates


def find_unfitted(model: nn.Module, tensors: Mapping[str, Tensor], prefix: str = '') -> list[Unfitted]:
    """What loading ``tensors`` into the model would have to fit: each weight once.

    Args:
        model: with live modules.
        tensors: a state dict.
        prefix: of the model's keys there.
    """
    found: dict[int, Unfitted] = {}
    for name, module in model.named_modules():
        if isinstance(module, LiveModule):
            for attribute, states in module._modules[STATES]._modules.items():
                key = f'{prefix}{name}.{attribute}' if name else f'{prefix}{attribute}'
                if isinstance(states, WeightStates) and key in tensors and states.needs_fit(tensors[key]):
                    found.setdefault(id(tensors[key]), Unfitted(key, tensors[key], states))
    return list(found.values())


def fit_all(
    unfitted: Sequence[Unfitted], threads: int = 1, on_progress: Callable[[float, str], None] | None = None
) -> None:
    """Fit the states; loading finds them with the tensors. The same ones whatever the number of threads.

    Raises:
        RiemError: a tensor is not finite, or the budget is too small for it.
    """
    tasks = [
        Task(
            weight.key,
            weight.tensor.numel(),
            partial(weight.states.fitted, weight.key, weight.tensor),
        )
        for weight in unfitted
    ]
    run_all(tasks, threads, on_progress)
