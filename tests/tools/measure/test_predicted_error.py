import pytest
import torch

from mmriem.benchmark.networks import Classifier
from mmriem.core.images.probe import ImageProbe


def test_a_row_for_each_error(call_here, tools, benchmark_config, classifier_data, monkeypatch, tmp_path, capsys):
    images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(Classifier, 'probe', lambda self: ImageProbe(images, description={}))
    fixed = [benchmark_config.name, '--data-root', classifier_data, '--threads', '1', '--networks', 'small']
    tool = tools / 'measure' / 'predicted_error.py'
    assert call_here(tool, *fixed, '--errors', '0.3', '0.7', '--out', 'out/table.md') is None
    text = (tmp_path / 'out' / 'table.md').read_text()
    rows = [[cell.strip() for cell in line.strip('|').split('|')] for line in text.splitlines() if line[:1] == '|'][2:]
    assert [float(row[1]) for row in rows] == [pytest.approx(0.3, rel=0.1), pytest.approx(0.7, rel=0.1)]
    assert int(rows[0][2].replace(',', '')) > int(rows[1][2].replace(',', '')) and float(rows[0][3]) > float(rows[1][3])
    for row in rows:
        assert 0 <= float(row[4]) <= 100 and float(row[4]) + float(row[5]) == pytest.approx(
            float(rows[0][4]) + float(rows[0][5]), abs=0.11
        )
    assert 'measure/predicted_error.py bench.py' in text and rows[0][2] in capsys.readouterr().out
