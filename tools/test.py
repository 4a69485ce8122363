"""Evaluate a detector or classifier from a `.riem` or `.pth` file, with the flags of mmdet's tools/test.py.

    python tools/test.py CONFIG CHECKPOINT [--work-dir DIR] [--out FILE.pkl] [--tta] ...

This is the command `mmriem test`.
"""

from mmriem.cli import call

if __name__ == '__main__':
    call('test')
