"""Train a detector or classifier, or fine-tune a compressed one, with the flags of mmdet's tools/train.py.

    python tools/train.py CONFIG [--work-dir DIR] [--amp] [--auto-scale-lr] [--resume [CHECKPOINT]] ...

This is the command `mmriem train`.
"""

from mmriem.cli import call

if __name__ == '__main__':
    call('train')
