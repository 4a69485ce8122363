"""Who does the work: tasks on threads, the executor of several processes, the journal, memory.

Imports nothing of core but errors.
"""
