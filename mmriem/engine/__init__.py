"""The MMEngine side of mmriem; importing it makes every MMEngine program read `.riem` files.

In a config: `custom_imports = dict(imports=['mmriem.engine'])`.
"""

from .checkpoint import Checkpoint, load_into, read_checkpoint
from .hooks import StrictLoadHook
from .scheme import load_from_riem, read_pth_safely

__all__ = [
    'Checkpoint',
    'StrictLoadHook',
    'load_from_riem',
    'load_into',
    'read_checkpoint',
    'read_pth_safely',
]
