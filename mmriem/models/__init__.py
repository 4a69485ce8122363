"""RieM modules for configs: `type='mmriem.RieMResNet'` and the like, and layers for `conv_cfg`.

`type='mmriem.RieMNAME'` works for every registered module `NAME`, third-party ones, heads and whole detectors too;
the classes that have a name here are those that pickle and imports know.

Importing this package also makes every MMEngine program read `.riem` files.
"""

from mmriem.engine import load_from_riem  # noqa: F401  (registers the scheme)

from .backbones import *  # noqa: F403
from .backbones import __all__ as _backbones
from .layers import RieMConv2d, RieMLinear
from .module import RieMModule, riem_class
from .necks import *  # noqa: F403
from .necks import __all__ as _necks

__all__ = ['RieMConv2d', 'RieMLinear', 'RieMModule', 'riem_class', *_backbones, *_necks]
