"""Norms and biases that make up for the weights' errors: recalibration, and training against the original.

Imports images, execution.
"""
