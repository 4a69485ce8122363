"""Compress a trained detector or classifier without data: a .riem file, a config that loads it, a report.

    python tools/compress.py CONFIG CHECKPOINT [--size 2MB] [--out DIR] ...

This is the command `mmriem compress`.
"""

from mmriem.cli import call

if __name__ == '__main__':
    call('compress')
