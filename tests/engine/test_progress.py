"""How far the work is: a live line on a terminal, a line for each tenth in a log, or nothing."""

import os
import pty
import subprocess
import sys
from pathlib import Path

from mmriem.engine.progress import show_progress

WORK = """
from mmriem.engine.progress import show_progress
with show_progress('packing') as display:
    for step in range(101):
        display(step / 100, f'box {step}')
        display.layer(step, 100, 1000 * step)
"""


def test_a_log_has_a_line_for_each_tenth(capsys):
    with show_progress('packing') as display:
        for step in range(101):
            display(step / 100, f'box {step}')
            display.layer(step, 100, 1000 * step)
    captured = capsys.readouterr()
    assert captured.out == ''
    lines = captured.err.splitlines()
    assert [line.partition(' (')[0] for line in lines] == [f'packing: {tenth} %' for tenth in range(10, 101, 10)]
    assert lines[4] == 'packing: 50 % (49/100 layers, 49 kB, box 50)'


def test_without_layers_a_line_names_the_stage(capsys):
    with show_progress('packing') as display:
        display(0.25, 'images')
        display(0.27, 'images')
    assert capsys.readouterr().err == 'packing: 20 % (images)\n'


def test_quiet_is_silent(capsys):
    with show_progress('packing', quiet=True) as display:
        display(0.5, 'images')
        display.layer(1, 2, 3)
    assert capsys.readouterr() == ('', '')


def test_a_terminal_has_one_live_line():
    main, other = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, '-c', WORK],
        stderr=other,
        env={**os.environ, 'TERM': 'xterm', 'COLUMNS': '160', 'PYTHONPATH': str(Path(__file__).parents[2])},
    )
    os.close(other)
    printed = b''
    while chunk := _read(main):
        printed += chunk
    assert process.wait(60) == 0
    text = printed.decode()
    assert 'packing' in text and '100%' in text and '100/100 layers, 100 kB' in text and 'left' in text
    assert 'packing: 50 %' not in text


def _read(descriptor):
    try:
        return os.read(descriptor, 4096)
    except OSError:  # the other end is closed
        return b''
