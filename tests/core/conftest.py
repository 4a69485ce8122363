"""Programs that run beside a test, in processes of their own: a fork of one that has threads may hang."""

import subprocess
import sys
import textwrap

import pytest


@pytest.fixture
def started():
    """Starts a Python program with arguments, its standard output a text stream; killed at the end if it still runs."""
    processes = []

    def start(program, *arguments):
        command = [sys.executable, '-c', textwrap.dedent(program), *map(str, arguments)]
        processes.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.wait()
        process.stdout.close()
