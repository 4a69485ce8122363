"""RieM modules for configs: `type='mmriem.RieMResNet'` and the like, and layers for `conv_cfg`.

Importing this package also makes every MMEngine program read `.riem` files.
"""

from mmriem.engine import load_from_riem  # noqa: F401  (registers the scheme)

from .backbones import RieMResNet, RieMSwinTransformer
from .layers import RieMConv2d, RieMLinear
from .necks import RieMFPN

__all__ = ['RieMConv2d', 'RieMFPN', 'RieMLinear', 'RieMResNet', 'RieMSwinTransformer']
