"""Data sets that the project makes by itself: the embedded demo set."""

from .digits import CLASSES, write_digits

__all__ = ['CLASSES', 'write_digits']
