"""Memory that is given back to the system."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

USE = """
import resource
import threading
from mmriem.core.execution.memory import release_memory

def resident():
    return int(open('/proc/self/statm').read().split()[1]) * resource.getpagesize()

kept = []

def fill():
    blocks = [bytearray(100_000) for _ in range(4_000)]  # too small to be mapped by themselves
    kept.append(bytearray(90_000))  # the last one, so that the allocator cannot shrink by itself
    del blocks

thread = threading.Thread(target=fill)
thread.start()
thread.join()
before = resident()
release_memory()
print(before, resident())
"""


@pytest.mark.skipif(not Path('/proc/self/statm').exists(), reason='reads /proc')
def test_freed_blocks_go_back_to_the_system():
    done = subprocess.run([sys.executable, '-c', USE], capture_output=True, text=True, check=True)
    before, after = map(int, re.findall(r'\d+', done.stdout))
    if before < 300_000_000:
        pytest.skip('this allocator has given it back already')
    assert after < before - 300_000_000
