"""How any module of mmdet becomes one that holds states: its own constructor, then states in place of its weights."""

from __future__ import annotations

import types
from collections import OrderedDict
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, SupportsIndex

import torch
from mmengine.dist import is_main_process
from mmengine.logging import print_log
from mmengine.runner import CheckpointLoader
from torch import Tensor, nn

from mmriem.core.errors import RiemError
from mmriem.core.file import reading
from mmriem.core.live.compressed import MEMORY, make_compressed, undecoded
from mmriem.core.live.convert import make_live, writable_weights
from mmriem.core.live.fit_on_load import Unfitted, find_unfitted, fit_all
from mmriem.core.live.layers import WEIGHT_OPTIONS
from mmriem.engine.checkpoint import load_into, state_dict_of
from mmriem.engine.progress import show_progress
from mmriem.engine.remote import local_path

__all__ = ['RieMModule', 'riem_class']

OPTIONS = (*WEIGHT_OPTIONS, 'include', 'exclude')
COMPRESSED_OPTIONS = ('cache', 'include', 'exclude')
"""Options that go with weights that stay compressed in memory."""


if TYPE_CHECKING:
    _Mixed = nn.Module
else:
    _Mixed = object  # the stock class brings nn.Module


class RieMModule(_Mixed):
    """Mixin for a module of mmdet whose weights are to be states.

    Parameters that the module holds itself, such as a position embedding, stay as they are: its code freezes
    and resizes them as parameters.

    Args:
        riem: `representation`, `ratio` or `bits`, `state_bits`, `effort`, `integers`, `materialize`, `include`,
            `exclude` for `core.live.convert.make_live`, with patterns on the module's own keys (`layer1.*`). With
            `checkpoint`, states are loaded when the module is built, from the keys of that file that begin
            with `prefix`; else, as of any model, by `load_from` or `init_cfg`. Distributed training from a
            `.riem` file of `sigmoid` or `bilinear` states needs it: their number comes from the file and must
            be known before the model is wrapped. With `memory='compressed'` the module holds the payloads of a
            `.riem` file, and decodes them as it runs; only `cache`, `include`, `exclude`, `checkpoint` and `prefix` go
            with that.
        *args, **kwargs: of the stock module.

    Raises:
        RiemError: an option is not known or does not fit the module, or the checkpoint does not.
    """

    _stock: ClassVar[type[nn.Module]]

    def __init__(self, *args: Any, riem: Mapping[str, Any] | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        options = dict(riem or {})
        checkpoint, prefix = options.pop('checkpoint', None), options.pop('prefix', '')
        memory = options.pop('memory', 'dense')
        if memory not in MEMORY:
            raise RiemError(f'riem: expected a memory among {", ".join(MEMORY)}, found {memory!r}')
        allowed = OPTIONS if memory == 'dense' else COMPRESSED_OPTIONS
        if unknown := [key for key in options if key not in allowed]:
            known = ', '.join((*allowed, 'checkpoint', 'prefix', 'memory'))
            raise RiemError(f'riem: expected keys among {known}, found {", ".join(unknown)}')
        own = [name for name, _ in self.named_parameters(recurse=False)]
        make = make_live if memory == 'dense' else make_compressed
        make(self, **{**options, 'exclude': (*options.get('exclude', ()), *own)})
        if checkpoint is not None:
            _load(self, checkpoint, prefix, memory)

    def init_weights(self) -> None:
        """As the stock module does, on weights that it may write to; nothing where it does nothing."""
        init = getattr(super(), 'init_weights', None)
        if init is not None:
            with writable_weights(self):
                init()

    def __reduce_ex__(self, protocol: SupportsIndex) -> Any:
        """Pickle by the stock class: the class of a third-party module is made when it is needed."""
        return _blank, (type(self)._stock,), self.__dict__

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Fit all weights of an ordinary checkpoint before the first one is loaded."""
        if unfitted := find_unfitted(self, state_dict, prefix):
            _fit(unfitted, prefix.rstrip('.') or type(self).__name__)
        super()._load_from_state_dict(state_dict, prefix, *args)


def riem_class(stock: type[nn.Module]) -> type[nn.Module]:
    """`RieM<NAME>` of a module class: its arguments, and `riem=dict(...)` of `RieMModule`; a subclass of it.

    The same class for each call. Configs name it `mmriem.RieM<NAME>`; `mmriem.registry` makes it where it is needed.
    """
    body = {
        '__module__': 'mmriem.models',
        '__doc__': f'`{stock.__name__}` that holds states: its arguments, and `riem` as for `RieMModule`.',
        '_stock': stock,
    }
    if stock not in _CLASSES:
        made = types.new_class(f'RieM{stock.__name__}', (RieMModule, stock), exec_body=lambda space: space.update(body))
        _CLASSES.setdefault(stock, made)
    return _CLASSES[stock]


_CLASSES: dict[type[nn.Module], type[nn.Module]] = {}
"""RieM classes that were made, by the stock class."""


def _blank(stock: type[nn.Module]) -> nn.Module:
    """An object of a RieM class whose attributes are yet to be set."""
    cls = riem_class(stock)
    return cls.__new__(cls)


def _fit(unfitted: list[Unfitted], where: str) -> None:
    """Each process does it alike, so that all of a distributed training hold the same states."""
    elements = sum(weight.tensor.numel() for weight in unfitted)
    print_log(
        f'{where}: {len(unfitted)} weights ({elements:,} elements) of an ordinary checkpoint are fitted without '
        'images; tools/compress.py makes better ones of the same size',
        logger='current',
    )
    threads = torch.get_num_threads()
    if not is_main_process():
        fit_all(unfitted, threads)
        return
    with show_progress(f'fitting {where}') as on_progress:
        fit_all(unfitted, threads, on_progress)


def _load(module: nn.Module, checkpoint: str, prefix: str, memory: str) -> None:
    if memory != 'dense' and checkpoint.endswith('.riem'):
        tensors: Mapping[str, Tensor] = undecoded(reading.read(local_path(checkpoint), parse=False))
    else:
        loaded = CheckpointLoader.load_checkpoint(checkpoint, map_location='cpu', logger='silent')
        tensors = state_dict_of(loaded, checkpoint)
    part = OrderedDict((key[len(prefix) :], x) for key, x in tensors.items() if key.startswith(prefix))
    if not part:
        found = ', '.join(sorted({key.partition('.')[0] for key in tensors}))
        raise RiemError(f'{checkpoint}: expected keys that begin with {prefix!r}, found those of {found}')
    load_into(module, part, checkpoint)
