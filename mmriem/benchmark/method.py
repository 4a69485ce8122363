"""What a method of the benchmark is: one file written, one state dict decoded."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from mmriem.core.coding.packing import PayloadReader
from mmriem.core.file.dense import store
from mmriem.core.weights.views import find_weights

__all__ = ['Method', 'PackedMethod', 'complete', 'floating_tensors']


class Method(ABC):
    """A way to write the state dict of a model to one file.

    Buffers that the constructor of the model fills (counters, index tables) are not stored by any method.

    Attributes:
        name: what a config calls it.
        requires: the module that must be installed, where it is not the project's own.
        install: the command that installs it.
        is_peer: whether it is something else than mmriem; norms of peers are recalibrated as well.
    """

    name: str
    requires: str | None = None
    install: str = ''
    is_peer: bool = True

    @classmethod
    def is_installed(cls) -> bool:
        """Whether it can run here."""
        return cls.requires is None or find_spec(cls.requires) is not None

    def prepare(self) -> None:  # noqa: B027  (nothing to do is the rule)
        """Import what the method needs, so that the seconds of its work are not those of imports."""

    @abstractmethod
    def encode(self, model: nn.Module, setting: Mapping[str, Any], path: Path, probe: Any = None) -> None:
        """Write the state dict of `model` to the file `path`; `probe` is what data-free measuring may run on."""

    @abstractmethod
    def decode(self, path: Path, model: nn.Module) -> dict[str, Tensor]:
        """The state dict that the file holds; `model` has the right shapes and any weights."""


def floating_tensors(model: nn.Module) -> dict[str, tuple[str, ...]]:
    """Floating tensors of a state dict, in order: the first key of each, and all keys that share its memory.

    >>> floating_tensors(nn.BatchNorm2d(3))['weight']
    ('weight',)
    """
    keys: dict[tuple, tuple[str, ...]] = {}
    for key, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            place = (tensor.data_ptr() or key, tensor.shape)
            keys[place] = (*keys.get(place, ()), key)
    return {shared[0]: shared for shared in keys.values()}


def complete(model: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of `model` with its floating tensors replaced, `tensors` having the first key of each."""
    state_dict = model.state_dict()
    for first, keys in floating_tensors(model).items():
        old = state_dict[first]
        state_dict.update(dict.fromkeys(keys, tensors[first].reshape(old.shape).to(old.dtype)))
    return state_dict


class PackedMethod(Method):
    """A method that turns one weight matrix after the other into bytes, and stores the rest as mmriem does.

    The file has three tensors: `payload`, the bytes of the matrices, one after the other; `half` and `single`, the
    other tensors, in fp16 where that is exact enough. Names and shapes are those of the model, so they are not stored.
    """

    @abstractmethod
    def pack(self, matrix: Tensor, *_: Any, **setting: Any) -> bytes:
        """The bytes of a weight matrix, float32 `(out, in)`."""

    @abstractmethod
    def unpack(self, reader: PayloadReader, shape: tuple[int, int], *_: Any, **setting: Any) -> Tensor:
        """The weight matrix of that shape."""

    def encode(self, model: nn.Module, setting: Mapping[str, Any], path: Path, probe: Any = None) -> None:
        """See `Method`."""
        state_dict, views = model.state_dict(), find_weights(model)
        payload = b''.join(self.pack(view.to_matrix(state_dict[view.name]), **setting) for view in views)
        rest = {key: state_dict[key] for key in _rest(model)}
        single = [key for key, tensor in rest.items() if store(key, tensor).layout.storage != 'half']
        half = [key for key in rest if key not in single]
        tensors = {
            'payload': torch.frombuffer(bytearray(payload), dtype=torch.uint8),
            'half': _joined(rest[key].half() for key in half),
            'single': _joined(rest[key].float() for key in single),
        }
        save_file(tensors, path, {'setting': json.dumps(dict(setting)), 'single': json.dumps(single)})

    def decode(self, path: Path, model: nn.Module) -> dict[str, Tensor]:
        """See `Method`."""
        with safe_open(path, 'pt') as file:
            stored = {key: file.get_tensor(key) for key in ('payload', 'half', 'single')}
            told = {key: json.loads(text) for key, text in file.metadata().items()}
        payload = stored['payload'].numpy().tobytes()
        reader = PayloadReader(payload, len(payload))
        tensors = {
            view.name: view.from_matrix(self.unpack(reader, view.matrix_shape, **told['setting']))
            for view in find_weights(model)
        }
        shapes = {key: tensor.shape for key, tensor in model.state_dict().items()}
        at = {'half': 0, 'single': 0}
        for key in _rest(model):
            kind = 'single' if key in told['single'] else 'half'
            tensors[key] = stored[kind][at[kind] : at[kind] + shapes[key].numel()].float()
            at[kind] += shapes[key].numel()
        return complete(model, tensors)


def _rest(model: nn.Module) -> list[str]:
    """First keys of the floating tensors that are no compressible weights."""
    weights = {view.name for view in find_weights(model)}
    return [key for key in floating_tensors(model) if key not in weights]


def _joined(tensors: Any) -> Tensor:
    flat = [tensor.reshape(-1) for tensor in tensors]
    return torch.cat(flat) if flat else torch.empty(0)
