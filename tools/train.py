"""Train a detector or classifier, or fine-tune a compressed one, with the flags of mmdet's tools/train.py.

    python tools/train.py CONFIG [--work-dir DIR] [--amp] [--auto-scale-lr] [--resume [CHECKPOINT]] ...

This is the command `mmriem train`.
"""

import sys

try:
    from mmriem.cli import call
except ModuleNotFoundError as error:
    sys.exit(f'error: {error.name} is not installed for {sys.executable}; run make setup, then use .venv/bin/python')

if __name__ == '__main__':
    call('train')
