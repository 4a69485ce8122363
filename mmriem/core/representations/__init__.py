"""How a weight matrix is regenerated from states; a folder or file for each way.

Imports coding and execution (for the type of progress).
"""
