"""Sees what goes into modules of a network, or comes out of them, while it runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from enum import Enum
from typing import Any, Optional

from torch import Tensor, nn

See = Callable[[str, nn.Module, Tensor], Optional[Tensor]]
"""Called with the name of a module, the module, and the tensor of this call."""


class Side(Enum):
    """Which tensor of a call is seen: the first argument, or what comes out."""

    INPUT = 'input'
    OUTPUT = 'output'


@contextmanager
def watching(model: nn.Module, sides: Mapping[str, Side], see: See) -> Iterator[None]:
    """Within, ``see`` is called at each call of the modules of these names that has such a tensor.

    Args:
        model: the network; a module that it holds under several names is known by the first one.
        sides: what is seen of each module.
        see: what it returns, if not None, takes the place of an output; of an input it is not used.
    """

    def at_input(name: str) -> Callable:
        def hook(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            if inputs and isinstance(inputs[0], Tensor):
                see(name, module, inputs[0])

        return hook

    def at_output(name: str) -> Callable:
        def hook(module: nn.Module, inputs: Any, output: Any) -> Tensor | None:
            return see(name, module, output) if isinstance(output, Tensor) else None

        return hook

    hooks = []
    for name, module in model.named_modules():
        if sides.get(name) is Side.INPUT:
            hooks.append(module.register_forward_pre_hook(at_input(name)))
        elif sides.get(name) is Side.OUTPUT:
            hooks.append(module.register_forward_hook(at_output(name)))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
