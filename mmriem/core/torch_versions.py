"""What is spelled otherwise in one version of PyTorch than in another, from 2.0 on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


def fused_adam(parameters: Iterable[Tensor], **settings: Any) -> torch.optim.Adam:
    """Adam in one kernel where PyTorch has it for the parameters' device (on a CPU from 2.4), otherwise in several.

    The two round differently: what was fitted by one need not be, byte for byte, what was fitted by the other.
    """
    parameters = list(parameters)
    try:
        return torch.optim.Adam(parameters, fused=True, **settings)
    except RuntimeError:  # it names the devices that it is for
        return torch.optim.Adam(parameters, **settings)


@contextmanager
def attention_as_products() -> Iterator[None]:
    """Makes attention of products that a dispatch mode sees, without fused kernels."""
    with _math_attention(), _NoFastPath():
        yield


def _math_attention() -> AbstractContextManager[Any]:
    try:
        from torch.nn.attention import SDPBackend, sdpa_kernel
    except ImportError:  # before 2.3
        return torch.backends.cuda.sdp_kernel(enable_flash=False, enable_math=True, enable_mem_efficient=False)
    return sdpa_kernel(SDPBackend.MATH)


class _NoFastPath(TorchFunctionMode):
    """Under any such mode the modules of attention and transformers take their ordinary path."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))
