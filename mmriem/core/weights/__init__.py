"""Any module seen as weight matrices.

Imports nothing of core but errors.
"""
