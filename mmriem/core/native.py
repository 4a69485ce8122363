"""The compiled part of decoding, ``_native.c``: the same bits as the Python beside it gives, many times as fast.

It is built where the package is installed with a C compiler at hand. Without it everything works; only reading a file
takes several times as long.
"""

from __future__ import annotations

from types import ModuleType

module: ModuleType | None
"""The compiled functions, or None where they were not built."""
try:
    from . import _native as module
except ImportError:
    module = None
