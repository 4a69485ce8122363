"""Evaluate a detector or classifier from a `.riem` or `.pth` file, with the flags of mmdet's tools/test.py.

    python tools/test.py CONFIG CHECKPOINT [--work-dir DIR] [--out FILE.pkl] [--tta] ...

This is the command `mmriem test`.
"""

import sys

try:
    from mmriem.cli import call
except ModuleNotFoundError as error:
    sys.exit(f'error: {error.name} is not installed for {sys.executable}; run make setup, then use .venv/bin/python')

if __name__ == '__main__':
    call('test')
