"""From a budget for the whole file to the settings or the step of each weight.

Imports representations and weights.
"""
