"""Modules that hold states instead of weights.

Imports file, representations, weights, execution.
"""

from . import layers  # noqa: F401  (registers them)
