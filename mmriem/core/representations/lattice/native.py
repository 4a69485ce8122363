"""The compiled search for integers, ``_search.c``: what :mod:`.trellis_search` finds, many times as fast.

It is built where the package is installed with a C compiler at hand. Without it everything works; compressing with a
trellis then takes several times as long. It also makes weights of integers, as :mod:`.codec` does.
"""

from __future__ import annotations

from types import ModuleType

module: ModuleType | None = None
"""The compiled functions, or None where they were not built."""
try:
    from . import _search
except ImportError:
    pass
else:
    module = _search
