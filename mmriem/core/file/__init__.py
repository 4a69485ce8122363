"""The .riem file: what stays dense, the manifest, reading strictly, writing atomically.

Imports representations, weights, coding, execution.
"""
