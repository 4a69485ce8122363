"""The compiled decoder of integers, ``_decoder.c``: what :mod:`.entropy` gives, many times as fast.

It is built where the package is installed with a C compiler at hand. Without it everything works; reading a file then
takes several times as long.
"""

from __future__ import annotations

from types import ModuleType

module: ModuleType | None = None
"""The compiled functions, or None where they were not built."""
try:
    from . import _decoder
except ImportError:
    pass
else:
    module = _decoder
