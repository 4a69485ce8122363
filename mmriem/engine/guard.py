"""Whatever fails while a network of the user runs ends in one line that says where."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.jit import ScriptModule

from mmriem.core.errors import RiemError

__all__ = ['guarded', 'in_one_line']

LONGEST = 200
"""Most characters of the reason in a message."""


def in_one_line(error: BaseException) -> str:
    r"""What went wrong, in one line: the class of the error and what it says, and so of the first of those behind it.

    >>> in_one_line(ValueError('a\n  b'))
    'ValueError: a b'
    """
    first = error
    while behind := first.__cause__ or (None if first.__suppress_context__ else first.__context__):
        first = behind
    told = _told(error)
    is_said = str(first) in str(error) or _told(first) == told
    return told if is_said else f'{told}, because of {_told(first)}'


def _told(error: BaseException) -> str:
    said = ' '.join(str(error).split())
    said = f'{said[: LONGEST - 3]}...' if len(said) > LONGEST else said
    return f'{type(error).__name__}: {said}' if said else type(error).__name__


@contextmanager
def guarded(
    model: nn.Module, task: str, remedy: str = 'use --metric identity, which does not run it'
) -> Iterator[None]:
    """Within, every error but a `RiemError` becomes one: it names the innermost module of `model` that was running.

    Args:
        model: what runs.
        task: what it was expected to do.
        remedy: what to do where it does not.

    Raises:
        RiemError: as said.
    """
    running: list[str] = []
    hooks = []

    def entering(name: str):
        return lambda module, inputs: running.append(name)

    def leaving(module: nn.Module, inputs: object, output: object) -> None:
        running.pop()

    for name, module in model.named_modules():
        if name and not isinstance(module, ScriptModule):
            hooks.append(module.register_forward_pre_hook(entering(f'{name} ({type(module).__name__})')))
            hooks.append(module.register_forward_hook(leaving))
    try:
        yield
    except RiemError:
        raise
    except Exception as error:  # a network is anybody's code
        place = f'module {running[-1]}' if running else type(model).__name__
        raise RiemError(
            f'{type(model).__name__}: expected it to {task}, found that {place} fails ({in_one_line(error)}); {remedy}'
        ) from error
    finally:
        for hook in hooks:
            hook.remove()
