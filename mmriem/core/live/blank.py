"""Building a network whose weights come from a file: its parameters need no random values before that."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

_DRAWS = (Tensor.uniform_, Tensor.normal_, nn.init.uniform_, nn.init.normal_, nn.init.kaiming_uniform_)


class BlankParameters(TorchFunctionMode):
    """Within, no random numbers are drawn into parameters: memory that nothing was written to takes no room.

    What they hold instead is anything; the network must be filled from a file that has all of them.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _DRAWS and isinstance(drawn := args[0] if args else kwargs.get('tensor'), nn.Parameter):
            return drawn
        return func(*args, **kwargs)
