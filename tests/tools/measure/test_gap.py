import re

import pytest
import torch

from mmriem.benchmark.networks import Classifier
from mmriem.classification import resnet20
from mmriem.core.images.probe import ImageProbe
from mmriem.core.weights.views import find_weights


@pytest.fixture
def measure_gap(call_here, tools, benchmark_config, classifier_data, monkeypatch):
    """Run the tool on the network `small`, with few images."""
    images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(Classifier, 'probe', lambda self: ImageProbe(images, description={}))
    fixed = [benchmark_config.name, '--data-root', classifier_data, '--threads', '1', '--networks', 'small']
    return lambda *arguments: call_here(tools / 'measure' / 'gap.py', *fixed, *arguments)


def test_weights_and_their_average(measure_gap, tmp_path, capsys):
    assert measure_gap('--bits', '3', '--skip-wider', '300', '--out', 'out/gap.md') is None
    text = (tmp_path / 'out' / 'gap.md').read_text()
    rows = [[cell.strip() for cell in line.strip('|').split('|')] for line in text.splitlines() if line[:1] == '|']
    views = find_weights(resnet20())
    kept = [view.name for view in views if view.matrix_shape[1] <= 300]
    assert [row[1] for row in rows[2:]] == [*kept, 'average'] and len(kept) < len(views)
    for row in rows[2:]:
        bits, bound, gap, by_rows, row_gap = map(float, row[5:])
        assert bits - bound == pytest.approx(gap, abs=2e-3) and bits - by_rows == pytest.approx(row_gap, abs=2e-3)
        assert bound > 0 and 0.2 < gap < bits
    numels = [int(row[2]) * int(row[3]) for row in rows[2:-1]]
    gaps = [float(row[7]) for row in rows[2:-1]]
    expected = sum(map(float.__mul__, gaps, map(float, numels))) / sum(numels)
    assert float(rows[-1][7]) == pytest.approx(expected, abs=2e-3)
    skipped = re.findall(r'- left out: small, (\S+): more than 300 columns\n', text)
    assert skipped == [view.name for view in views if view.matrix_shape[1] > 300]
    assert 'measure/gap.py bench.py' in text
    printed = capsys.readouterr()
    assert 'average' in printed.out and f'left out: small, {skipped[0]}' in printed.err


def test_an_unknown_network_is_one_error(measure_gap):
    assert "network 'large': expected one of small, again of the config" in measure_gap('--networks', 'large')
