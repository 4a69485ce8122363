"""Data-free compression of detectors and classifiers with Riemannian neuronal states.

>>> import mmriem, tempfile, torch
>>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 32, 3), torch.nn.ReLU(), torch.nn.Conv2d(32, 32, 3))
>>> path = f'{tempfile.mkdtemp()}/net.riem'
>>> size = mmriem.save(mmriem.compress(net, bits=6.0, input_size=(3, 8, 8)), path)
>>> mmriem.load(net, path) is net
True
"""

from typing import TYPE_CHECKING, Any

from .version import __version__

if TYPE_CHECKING:
    from .api import compress, load, save

__all__ = ['__version__', 'compress', 'load', 'save']


def __getattr__(name: str) -> Any:
    """The calls of `mmriem.api`, which takes torch along: `mmriem --help` and `mmriem doctor` do without."""
    if name in ('compress', 'load', 'save'):
        from . import api

        return getattr(api, name)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
