"""tools/maintain/fingerprints.py: the same file gives the same line, another rate another one."""

import torch

from mmriem.benchmark.networks import Classifier
from mmriem.core.images.probe import ImageProbe


def test_lines_tell_files_apart(call_here, tools, benchmark_config, classifier_data, monkeypatch, capsys):
    images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(Classifier, 'probe', lambda self, _: ImageProbe(images, description={}))
    fixed = [benchmark_config.name, '--data-root', classifier_data, '--threads', '1', '--networks', 'small']
    lines = []
    for bits in ('6', '6', '5'):
        assert call_here(tools / 'maintain' / 'fingerprints.py', *fixed, '--bits', bits) is None
        lines.append(capsys.readouterr().out)
    assert lines[0] == lines[1] != lines[2]
    assert len(lines[0].split()[0]) == 64 and ' small, ' in lines[0]
