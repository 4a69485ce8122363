"""Data-free compression of MMDetection detectors with Riemannian neuronal states."""

from .version import __version__

__all__ = ['__version__']
