"""The config that is written beside a `.riem` file: Python that holds literals alone, read back before it counts."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from keyword import iskeyword
from pathlib import Path
from typing import Any

from mmengine.config import Config

from mmriem.core.atomic import scratch_folder, write_whole
from mmriem.core.errors import RiemError

from .config import import_path, load_strictly, read_config, scope_of
from .detector import with_teachers
from .pipeline import type_name

__all__ = ['LoadingConfig']

WIDTH = 120
HERE = """load_from = __import__('os').path.join(
    __import__('os').path.dirname(__import__('sys')._getframe().f_code.co_filename), {name}
)
"""
"""A file of the config's own folder. MMEngine's `{{ fileDirname }}` would paste the folder into the text as it is, and
takes a config with a line `import os` for one in pure Python."""
UNWRITTEN = ('load_from', 'work_dir')


class LoadingConfig:
    """A config as the one that was compressed, but for what loads the file.

    Args:
        config: the one that was compressed.
        riem_name: the file, in the folder of the config that is written.

    Raises:
        RiemError: a value cannot be written as a literal, or reads back as another one; nothing is left behind.
    """

    def __init__(self, config: Config, riem_name: str) -> None:
        self._riem_name = riem_name
        self._values = dict(_written(_settings(config), ''))
        with tempfile.TemporaryDirectory() as folder:  # before the work begins
            self.write(Path(folder) / 'loading.py')

    @property
    def text(self) -> str:
        """The whole file."""
        name = literal(self._riem_name)
        first = f'# Loads {name} from the folder of this config; data settings as in the config that was compressed.\n'
        return first + HERE.format(name=name) + '\n'.join(self._lines()) + '\n'

    def write(self, path: Path) -> None:
        """Write it whole, once it has been read back, or not at all.

        Raises:
            RiemError: it reads back as something else.
        """
        with scratch_folder(path) as folder:
            fresh = folder / 'loading.py'
            write_whole(fresh, self.text)
            self._check(fresh)
            os.replace(fresh, path)

    def _lines(self) -> Iterator[str]:
        for key, value in self._values.items():
            if key.isidentifier() and not iskeyword(key):
                yield f'{key} = {literal(value)}'
            else:
                yield f'globals()[{literal(key)}] = {literal(value)}'

    def _check(self, path: Path) -> None:
        read = read_config(path).to_dict()
        expected = {'load_from': str(path.absolute().with_name(self._riem_name)), **self._values}
        for key in {**read, **expected}:
            found = literal(read[key]) if key in read else 'nothing'
            wanted = literal(expected[key]) if key in expected else 'nothing'
            if found != wanted:
                raise RiemError(
                    f'config: expected {key} of the written config to read back as {wanted[:80]}, found {found[:80]}; '
                    'rename it in the config that is compressed'
                )


def literal(value: Any, indent: int = 0) -> str:
    r"""A value as Python's literals, lines broken at `WIDTH`.

    No text in it has the two braces in a row that MMEngine replaces by something else.

    >>> print(literal({'a': (1.5, None), 'b': '{{ fileDirname }}'}))
    {'a': (1.5, None), 'b': '{\x7b fileDirname }}'}
    """
    flat = _in_a_row(value, literal_of_atom)
    if len(flat) + indent <= WIDTH or not isinstance(value, (dict, list, tuple)) or not value:
        return flat
    inner, pad = indent + 4, ' ' * (indent + 4)
    if isinstance(value, dict):
        lines = [f'{pad}{literal_of_atom(key)}: {literal(item, inner)},' for key, item in value.items()]
    else:
        lines = [f'{pad}{literal(item, inner)},' for item in value]
    opening, closing = _BRACKETS[type(value)]
    return '\n'.join([opening, *lines, ' ' * indent + closing])


_BRACKETS: dict[type, tuple[str, str]] = {dict: ('{', '}'), list: ('[', ']'), tuple: ('(', ')'), set: ('{', '}')}


def _in_a_row(value: Any, atom: Callable[[Any], str]) -> str:
    if isinstance(value, dict):
        items = [f'{_in_a_row(key, atom)}: {_in_a_row(item, atom)}' for key, item in value.items()]
    elif isinstance(value, set):
        items = sorted(_in_a_row(item, atom) for item in value)
    elif isinstance(value, (list, tuple)):
        items = [_in_a_row(item, atom) for item in value]
    else:
        return atom(value)
    if isinstance(value, set) and not items:
        return 'set()'
    opening, closing = _BRACKETS[type(value)]
    return f'{opening}{", ".join(items)}{"," if isinstance(value, tuple) and len(items) == 1 else ""}{closing}'


def literal_of_atom(value: Any) -> str:
    """A text, number, `None` and so on: infinite numbers as `1e999`, NaN as a difference of these."""
    if isinstance(value, float) and value != value:
        return '(1e999 - 1e999)'
    if isinstance(value, float):
        return repr(value).replace('inf', '1e999')
    if isinstance(value, (tuple, list, dict, set)):
        return _in_a_row(value, literal_of_atom)
    return repr(value).replace('{{', '{\\x7b')


def _settings(config: Config) -> dict[str, Any]:
    """What the written config says, classes as their names."""
    config = Config({'default_scope': scope_of(config), **_without_pretrained(with_teachers(config).to_dict())})
    custom = config.get('custom_imports') or {}
    imports = custom.get('imports') or []
    imports = [imports] if isinstance(imports, str) else list(imports)
    if 'mmriem.engine' not in imports:
        imports.append('mmriem.engine')
    config.custom_imports = dict(imports=imports, allow_failed_imports=bool(custom.get('allow_failed_imports')))
    config.default_scope = scope_of(config)
    load_strictly(config)
    config.resume = False
    return {key: value for key, value in config.to_dict().items() if key not in UNWRITTEN}


def _written(tree: Any, place: str) -> Any:
    """A tree of what can be written: builtin types, and in `type` the path of a class or function.

    Raises:
        RiemError: something else, with its place.
    """
    within = partial('{}.{}'.format, place) if place else str
    if isinstance(tree, Mapping):
        return {_written(key, within(key)): _written(value, within(key)) for key, value in tree.items()}
    for kind in (tuple, list, set):
        if isinstance(tree, kind):
            return kind(_written(value, within(number)) for number, value in enumerate(tree))
    for atom in _ATOMS:
        if isinstance(tree, atom):
            return atom(tree)
    if tree is None or tree is Ellipsis:
        return tree
    path = import_path(tree)
    if place.rpartition('.')[2] == 'type' and path:
        return path
    raise RiemError(
        f'config: expected values at {place} that can be written as text, found {_named(tree)}; register it, and '
        'name it in the config'
    )


_ATOMS: tuple[type, ...] = (bool, int, float, complex, str, bytes)


def _named(thing: Any) -> str:
    kind = type(thing).__name__
    return f'the {kind} {thing.__qualname__}' if hasattr(thing, '__qualname__') else f'a value of type {kind}'


def _without_pretrained(tree: Any) -> Any:
    """The tree without `init_cfg` of pretrained weights: the file holds every weight, so nothing is downloaded."""
    if isinstance(tree, dict):
        kept = {key: _without_pretrained(value) for key, value in tree.items()}
        start = kept.get('init_cfg')
        if isinstance(start, (list, tuple)):
            kept['init_cfg'] = [entry for entry in start if not _is_pretrained(entry)] or None
        elif _is_pretrained(start):
            kept['init_cfg'] = None
        if isinstance(kept.get('pretrained'), str):
            kept['pretrained'] = None
        return kept
    if isinstance(tree, (list, tuple)):
        return type(tree)(_without_pretrained(value) for value in tree)
    return tree


def _is_pretrained(start: Any) -> bool:
    return isinstance(start, dict) and type_name(start) in ('Pretrained', 'PretrainedInit')
