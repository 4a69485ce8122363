"""Compress a trained detector or classifier without data: a .riem file, a config that loads it, a report.

    python tools/compress.py CONFIG CHECKPOINT [--size 2MB] [--out DIR] ...

This is the command `mmriem compress`.
"""

import sys

try:
    from mmriem.cli import call
except ModuleNotFoundError as error:
    sys.exit(f'error: {error.name} is not installed for {sys.executable}; run make setup, then use .venv/bin/python')

if __name__ == '__main__':
    call('compress')
