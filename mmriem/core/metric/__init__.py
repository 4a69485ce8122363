"""The pullback metric of each weight, from a run on images, and the bound on rates that follows.

Imports images, execution, weights, representations.
"""
