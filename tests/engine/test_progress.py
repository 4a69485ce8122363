"""How far the work is: a live line on a terminal, a line for each tenth in a log, or nothing."""

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from mmriem.engine.progress import Course, duration, show_progress

WORK = """
from mmriem.engine.progress import show_progress
with show_progress('packing') as display:
    for step in range(101):
        display(step / 100, f'[/x] box {step} :smile:')
        display.layer(step, 100, 1000 * step)
"""


class Clock:
    """A second passes at every look."""

    now = 0.0

    def __call__(self):
        self.now += 1
        return self.now


def test_a_log_has_a_line_for_each_tenth_with_elapsed_and_remaining_time(capsys):
    with show_progress('packing', clock=Clock()) as display:
        for step in range(101):
            display(step / 100, f'box {step}')
            display.layer(step, 100, 1000 * step)
    captured = capsys.readouterr()
    assert captured.out == ''
    lines = captured.err.splitlines()
    assert [line.partition(' (')[0] for line in lines] == [f'packing: {tenth} %' for tenth in range(10, 101, 10)]
    assert lines[0] == 'packing: 10 % (1 s, about 9 s left; 9/100 layers, 9 kB, box 10)'
    assert lines[4] == 'packing: 50 % (5 s, about 5 s left; 49/100 layers, 49 kB, box 50)'
    assert lines[9] == 'packing: 100 % (10 s; 99/100 layers, 99 kB, box 100)'


def test_without_layers_a_line_names_the_stage(capsys):
    with show_progress('packing', clock=Clock()) as display:
        display(0.25, 'images')
        display(0.27, 'images')
    assert capsys.readouterr().err == 'packing: 20 % (1 s, about 3 s left; images)\n'


def test_what_is_shown_never_falls(capsys):
    with show_progress('packing', clock=Clock()) as display:
        for share in (0.3, 0.1, 0.35, 0.29, 0.4, 2.0):
            display(share, 'a')
    shown = [line.partition(' (')[0] for line in capsys.readouterr().err.splitlines()]
    assert shown == ['packing: 30 %', 'packing: 40 %', 'packing: 100 %']


def test_layers_are_counted_within_a_pass_that_is_named():
    course, told = Course(Clock()), []
    for _ in range(2):
        for done in (1, 2, 3):
            course.layer(done, 3, 1000 * done)
            told.append(course.work)
    assert told[:3] == ['1/3 layers, 1 kB', '2/3 layers, 2 kB', '3/3 layers, 3 kB']
    assert told[3:] == ['pass 2: 1/3 layers, 1 kB', 'pass 2: 2/3 layers, 2 kB', 'pass 2: 3/3 layers, 3 kB']


def test_nothing_is_said_of_the_rest_before_there_is_anything_to_go_by():
    course = Course(Clock())
    course.advance(0.01, 'a')
    assert course.times == '1 s'
    course.advance(0.1, 'a')
    assert course.times == '2 s, about 18 s left'
    course.advance(1.0, 'a')
    assert course.times == '3 s'


@pytest.mark.parametrize(
    ('seconds', 'text'),
    [
        (0, '0 s'),
        (59.4, '59 s'),
        (59.6, '1 min 00 s'),
        (3599, '59 min 59 s'),
        (3600, '1 h 00 min'),
        (9e4, '25 h 00 min'),
    ],
)
def test_times_for_people(seconds, text):
    assert duration(seconds) == text


def test_quiet_is_silent(capsys):
    with show_progress('packing', quiet=True) as display:
        display(0.5, 'images')
        display.layer(1, 2, 3)
    assert capsys.readouterr() == ('', '')


def test_a_terminal_has_one_live_line_and_names_are_no_markup():
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
    assert 'packing' in text and '100%' in text and '100/100 layers, 100 kB, [/x] box 100 :smile:' in text
    assert 'packing: 50 %' not in text


def _read(descriptor):
    try:
        return os.read(descriptor, 4096)
    except OSError:  # the other end is closed
        return b''
