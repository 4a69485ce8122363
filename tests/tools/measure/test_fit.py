import re

import torch


def test_the_published_recipe_and_the_fit_that_is_as_good(call_here, tools, monkeypatch, capsys):
    monkeypatch.setattr(torch, 'set_num_threads', lambda count: None)
    assert call_here(tools / 'measure' / 'fit.py', '--published', '120') is None
    lines = capsys.readouterr().out.splitlines()
    found = [float(number) for line in lines for number in re.findall(r'steps: (-?[\d.]+) dB', line)]
    assert len(found) == 2 and found[1] < found[0]
    fits = [re.match(r'([\d,]+) bytes, effort 1: (-[\d.]+) dB', line) for line in lines]
    assert [fit[1] for fit in fits if fit] == ['24,984', '32,580']
    assert all(float(fit[2]) < -15 for fit in fits if fit)
