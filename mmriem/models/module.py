"""How any module of mmdet becomes one that holds states: its own constructor, then surgery."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from mmengine.runner import CheckpointLoader
from torch import nn

from mmriem.core.errors import RiemError
from mmriem.core.live import make_live, writable_weights
from mmriem.engine.checkpoint import load_into, state_dict_of
from mmriem.registry import MODELS

__all__ = ['RieMModule', 'riem_class']

OPTIONS = ('representation', 'ratio', 'state_bits', 'include', 'exclude')


class RieMModule:
    """Mixin for a module of mmdet whose weights are to be states.

    Parameters that the module holds itself, such as a position embedding, stay as they are: its code freezes
    and resizes them as parameters.

    Args:
        riem: `representation`, `ratio`, `state_bits`, `include`, `exclude` as for
            `mmriem.core.live.make_live`, with patterns on the module's own keys (`layer1.*`). With
            `checkpoint`, states are loaded when the module is built, from the keys of that file that begin
            with `prefix`; else, as of any model, by `load_from` or `init_cfg`. Distributed training from a
            `.riem` file needs it: the number of states comes from the file and must be known before the model
            is wrapped.
        *args, **kwargs: of the stock module.

    Raises:
        RiemError: an option is not known or does not fit the module, or the checkpoint does not.
    """

    def __init__(self, *args: Any, riem: Mapping[str, Any] | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        options = dict(riem or {})
        checkpoint, prefix = options.pop('checkpoint', None), options.pop('prefix', '')
        if unknown := [key for key in options if key not in OPTIONS]:
            known = ', '.join((*OPTIONS, 'checkpoint', 'prefix'))
            raise RiemError(f'riem: expected keys among {known}, found {", ".join(unknown)}')
        own = [name for name, _ in self.named_parameters(recurse=False)]
        make_live(self, **{**options, 'exclude': (*options.get('exclude', ()), *own)})
        if checkpoint is not None:
            _load(self, checkpoint, prefix)

    def init_weights(self) -> None:
        """As the stock module does, on weights that it may write to."""
        with writable_weights(self):
            super().init_weights()


def riem_class(stock: type[nn.Module]) -> type[nn.Module]:
    """Make and register `RieM<NAME>` of a module class: its arguments, and `riem=dict(...)` of `RieMModule`.

    The name must be one of the package `mmriem.models`, where pickle looks for it.
    """
    body = {
        '__module__': 'mmriem.models',
        '__doc__': f'`{stock.__name__}` that holds states: its arguments, and `riem` as for `RieMModule`.',
    }
    cls = type(stock)(f'RieM{stock.__name__}', (RieMModule, stock), body)
    return MODELS.register_module(module=cls)


def _load(module: nn.Module, checkpoint: str, prefix: str) -> None:
    loaded = CheckpointLoader.load_checkpoint(checkpoint, map_location='cpu', logger='silent')
    tensors = state_dict_of(loaded, checkpoint)
    part = OrderedDict((key[len(prefix) :], x) for key, x in tensors.items() if key.startswith(prefix))
    if not part:
        found = ', '.join(sorted({key.partition('.')[0] for key in tensors}))
        raise RiemError(f'{checkpoint}: expected keys that begin with {prefix!r}, found those of {found}')
    load_into(module, part, checkpoint)
