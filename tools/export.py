"""Turn a .riem file into what programs without mmriem read: a stock checkpoint, or an ONNX model.

    python tools/export.py NAME.riem --to dense.pth [--half]
    python tools/export.py NAME.riem --to model.onnx --config NAME.py [--size 640 640]

This is the command `mmriem export`.
"""

from mmriem.cli import call

if __name__ == '__main__':
    call('export')
