"""Images that a network runs on, procedural ones and the search for their style.

Imports execution.
"""
