"""A layer that is run without its dense weight takes a tenth of that weight's memory."""

import runpy
import sys
from pathlib import Path

import pytest

TOOL = runpy.run_path(str(Path(__file__).parents[3] / 'tools' / 'measure' / 'matrix_free.py'))

pytestmark = pytest.mark.skipif(sys.platform != 'linux', reason='memory in use is read from /proc')


def test_the_dense_layer_takes_its_weight():
    found = TOOL['measure']('linear', 'dense', 4096, 0.05)
    assert found['weight'] == 4 * 4096**2
    assert found['held'] >= 0.95 * found['weight'] and found['peak'] >= found['held']


@pytest.mark.parametrize('representation', ['bilinear', 'sigmoid'])
def test_matrix_free_takes_a_tenth_of_it(representation):
    found = TOOL['measure']('linear', representation, 4096, 0.05)
    assert 0.04 * found['weight'] < found['held'] < found['peak'] <= 0.1 * found['weight']
