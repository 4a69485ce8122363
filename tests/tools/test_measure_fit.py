import re

import torch


def test_the_published_recipe_and_the_fit_that_is_as_good(call_here, tools, monkeypatch, capsys):
    monkeypatch.setattr(torch, 'set_num_threads', lambda count: None)
    assert call_here(tools / 'measure_fit.py', '--published', '120') is None
    lines = capsys.readouterr().out.splitlines()
    found = [float(number) for line in lines[:-1] for number in re.findall(r'steps: (-?[\d.]+) dB', line)]
    assert len(found) == 2 and found[1] < found[0]
    bytes_, decibels = re.match(r'([\d,]+) bytes, effort 1: (-[\d.]+) dB', lines[-1]).groups()
    assert bytes_ == '24,984' and float(decibels) < -15
