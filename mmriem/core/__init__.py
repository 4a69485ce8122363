"""The mathematics and the file: torch, numpy and safetensors only, nothing of mm*.

A folder for each role; imports go down this list only, which a test proves: pipeline, live, correction, file, budget,
metric, images, representations, execution, weights, coding.
"""

from .errors import RiemError
from .representations.bilinear.representation import BILINEAR
from .representations.lattice.representation import LATTICE
from .representations.registry import Representation, get_representation, representation_names
from .representations.sigmoid.representation import SIGMOID

__all__ = [
    'BILINEAR',
    'LATTICE',
    'SIGMOID',
    'Representation',
    'RiemError',
    'get_representation',
    'representation_names',
]
