"""Reading configs for the command line tools."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from difflib import get_close_matches
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.registry import Registry

from mmriem.core.errors import RiemError

from .guard import in_one_line

__all__ = [
    'STATED_ROOT',
    'config_path',
    'import_path',
    'load_strictly',
    'read_config',
    'registered',
    'scope_of',
    'with_data_root',
]

STATED_ROOT = '../shared/data/'
"""Where configs say that data and checkpoints are which are no part of the project."""


def read_config(name: str | os.PathLike, options: Mapping[str, Any] | None = None) -> Config:
    """Read a config of MMEngine's kind.

    Args:
        name: a path, or `PACKAGE::PATH` for a config that a package ships (`mmdet::retinanet/...`).
        options: what `--cfg-options` gave, by dotted keys.

    Raises:
        RiemError: there is no such config, it cannot be read, or an option does not fit it.
    """
    path = config_path(name)
    try:
        config = Config.fromfile(path)
    except Exception as error:  # a config is a program, anything can happen in it
        raise RiemError(f'{path}: the config cannot be read ({in_one_line(error)})') from error
    config.default_scope = scope_of(config)  # without one, mmdet's own tools find none of its classes
    try:
        config.merge_from_dict(dict(options or {}))
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise RiemError(f'{path}: --cfg-options does not fit the config ({error})') from error
    return config


def scope_of(config: Config) -> str:
    """The default scope of a config: that of mmdet where it has none, or None, as configs in pure Python do."""
    return config.get('default_scope') or 'mmdet'


def registered(registry: Registry, kind: Any) -> Any:
    """The class that `type` of an entry means in the default scope: of that name, or itself.

    Raises:
        Exception: whatever the registry makes of a name that it does not know, or the package of another scope.
    """
    if not isinstance(kind, str):
        return kind
    with registry.switch_scope_and_registry(None) as scoped:
        return scoped.get(kind)


def import_path(thing: Any) -> str | None:
    """Where a class or function is imported from, which a registry takes for it; None where it cannot be."""
    module, name = getattr(thing, '__module__', None), getattr(thing, '__qualname__', None)
    if isinstance(module, str) and isinstance(name, str):
        with suppress(Exception):  # modules are anybody's code
            if getattr(import_module(module), name) is thing:
                return f'{module}.{name}'
    return None


def config_path(name: str | os.PathLike) -> Path:
    """The file of a config, see `read_config`.

    Raises:
        RiemError: there is no such file.
    """
    package, stock, inner = os.fspath(name).partition('::')
    if not stock:
        path = Path(name).expanduser()
        if not _is_file(path):
            raise RiemError(f'{name}: no such config file; give a path, or mmdet::FOLDER/NAME.py for a stock config')
        return path
    spec = find_spec(package) if package.isidentifier() else None
    if spec is None or spec.origin is None:
        raise RiemError(f'{name}: the package {package} is not installed; install it or give the path of a config')
    root = Path(spec.origin).parent / '.mim' / 'configs'
    path = root / (inner if inner.endswith('.py') else f'{inner}.py')
    if not path.is_file():
        shipped = [file.relative_to(root).as_posix() for file in root.glob('*/*.py')]
        close = get_close_matches(inner, shipped, n=1)
        hint = f'did you mean {package}::{close[0]}?' if close else f'the configs of {package} are in {root}'
        raise RiemError(f'{name}: {package} ships no such config; {hint}')
    return path


def _is_file(path: Path) -> bool:
    """Whether it is one; a name that no file can have is none."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def load_strictly(config: Config) -> None:
    """Make the Runner of `config` fail on a checkpoint that does not fit the model.

    The hook goes to `default_hooks`, a dict that configs and `--cfg-options` merge with, and not to the list
    `custom_hooks`, which they replace.
    """
    if config.get('default_hooks') is None:
        config.default_hooks = {}
    config.merge_from_dict({'default_hooks.strict_load': dict(type='mmriem.StrictLoadHook')})


def with_data_root(tree: Any, root: str | os.PathLike | None) -> Any:
    """A tree of dicts and lists with the paths under `STATED_ROOT` moved to `root`, where that is given.

    >>> with_data_root({'images': ['../shared/data/set/images']}, 'elsewhere')
    {'images': ['elsewhere/set/images']}
    """
    if isinstance(tree, dict):
        return {key: with_data_root(value, root) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return type(tree)(with_data_root(value, root) for value in tree)
    if root and isinstance(tree, str) and tree.startswith(STATED_ROOT):
        return os.path.join(root, tree[len(STATED_ROOT) :])
    return tree
