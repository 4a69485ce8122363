"""The mathematics and the file: torch, numpy and safetensors only, nothing of mm*."""

from . import bilinear, lattice, sigmoid  # noqa: F401  (registers the representations)
from .errors import RiemError
from .representation import Representation, get_representation, representation_names

__all__ = ['Representation', 'RiemError', 'get_representation', 'representation_names']
