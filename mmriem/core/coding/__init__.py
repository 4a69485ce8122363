"""Integers to bytes and back, bit for bit on every machine: exact arithmetic, the entropy coder and its model, packing.

Imports nothing of core but errors.
"""
