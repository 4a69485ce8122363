"""Turn a .riem file into what programs without mmriem read: a stock checkpoint, or an ONNX model.

    python tools/export.py NAME.riem --to dense.pth [--half]
    python tools/export.py NAME.riem --to model.onnx --config NAME.py [--size 640 640]

This is the command `mmriem export`.
"""

import sys

try:
    from mmriem.cli import call
except ModuleNotFoundError as error:
    sys.exit(f'error: {error.name} is not installed for {sys.executable}; run make setup, then use .venv/bin/python')

if __name__ == '__main__':
    call('export')
