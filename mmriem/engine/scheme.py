"""How MMEngine's CheckpointLoader reads `.riem` files, and, in mmriem's own tools, `.pth` files too."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from mmengine.runner import CheckpointLoader
from torch import Tensor

from mmriem.core.file import reading
from mmriem.core.file.archive import RECORD
from mmriem.stock import with_tuples

from .checkpoint import device_of, state_dict_of, unpickle
from .misfit import mark, refuse_misfits
from .remote import local_path

__all__ = ['load_from_riem', 'read_pth_safely']


@CheckpointLoader.register_scheme([r'.*\.riem$', r'https?://.*\.riem$'], force=True)
def load_from_riem(filename: str, map_location: Any = None) -> dict[str, Any]:
    """Read a `.riem` file as MMEngine reads a checkpoint: `dict(state_dict, meta=dict(dataset_meta))`.

    Every tensor is dense. One that was decoded from states also carries its record as the attribute `riem`,
    which RieM modules take their states from. Where `map_location` names a device the tensors go there. MMEngine
    refuses to load them into a model that they do not fit, see `mmriem.engine.misfit`.

    Raises:
        RiemError: the file is missing, damaged, or not a `.riem` file.
    """
    archive = reading.read(local_path(filename))
    state_dict = archive.decode()
    device = device_of(map_location)
    placed = OrderedDict((name, mark(_moved(tensor, device), filename)) for name, tensor in state_dict.items())
    return dict(state_dict=placed, meta=dict(dataset_meta=with_tuples(archive.dataset_meta)))


def read_pth_safely(*, trust: bool = False) -> None:
    """From now on MMEngine reads `.pth` files with mmriem's reader, also for `resume` and `init_cfg`.

    It differs from MMEngine's own in what it accepts, see `mmriem.engine.checkpoint`, and in its errors.

    Args:
        trust: unpickle without restrictions, which runs whatever code a file holds.
    """

    def load_from_pth(filename: str, map_location: Any = None) -> dict[str, Any]:
        path = local_path(filename)
        tree = unpickle(path, trust=trust, map_location=map_location)
        rest = tree if isinstance(tree, Mapping) and isinstance(tree.get('meta'), Mapping) else {}
        return {**rest, 'state_dict': state_dict_of(tree, path)}

    CheckpointLoader.register_scheme(['', 'http://', 'https://'], load_from_pth, force=True)


def _moved(tensor: Tensor, device: Any) -> Tensor:
    moved = tensor.to(device)
    if hasattr(tensor, RECORD):
        setattr(moved, RECORD, getattr(tensor, RECORD))
    return moved


refuse_misfits()
