"""compress(): the stages from a module to an archive.

Imports every room but live.
"""
