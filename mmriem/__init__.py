"""Data-free compression of detectors and classifiers with Riemannian neuronal states.

>>> import tempfile, torch
>>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 32, 3), torch.nn.ReLU(), torch.nn.Conv2d(32, 32, 3))
>>> path = f'{tempfile.mkdtemp()}/net.riem'
>>> size = save(compress(net, bits=6.0, input_size=(3, 8, 8)), path)
>>> load(net, path) is net
True
"""

from .api import compress, load, save
from .version import __version__

__all__ = ['__version__', 'compress', 'load', 'save']
