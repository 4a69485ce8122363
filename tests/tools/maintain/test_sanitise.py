"""tools/maintain/sanitise.py: a few streams and searches under the sanitisers."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[3] / 'tools' / 'maintain' / 'sanitise.py'


def sanitisers():
    """Whether gcc has them here."""
    if shutil.which('gcc') is None:
        return False
    found = subprocess.run(['gcc', '-print-file-name=libasan.so'], capture_output=True, text=True).stdout.strip()
    return Path(found).is_absolute()


@pytest.mark.skipif(not sanitisers(), reason='gcc with libasan is needed')
def test_a_few_streams_and_searches_pass():
    done = subprocess.run([sys.executable, SCRIPT, '--count', '60'], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    counts = {kind: int(number) for kind, number in (line.split(': ') for line in done.stdout.splitlines())}
    assert sum(counts.values()) == 66
    assert counts['matrix, refused'] > 0 < counts['vector, decoded']
