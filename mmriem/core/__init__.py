"""The mathematics and the file: torch, numpy and safetensors only, nothing of mm*.

A folder for each role; imports go down this list only, which a test proves: pipeline, live, correction, file, budget,
metric, images, representations, execution, weights, coding.
"""

from .errors import RiemError
from .representations.base import Representation, get_representation, representation_names
from .representations.bilinear import Bilinear
from .representations.lattice.representation import Lattice
from .representations.sigmoid.representation import Sigmoid

__all__ = [
    'Bilinear',
    'Lattice',
    'Representation',
    'RiemError',
    'Sigmoid',
    'get_representation',
    'representation_names',
]
