"""Errors of anybody's network as one line that says where."""

import pytest
import torch
from torch import nn

from mmriem.core.errors import RiemError
from mmriem.engine.guard import guarded, in_one_line


class Failing(nn.Module):
    def forward(self, x):
        raise KeyError('seventh\n  key')


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.blocks = nn.Identity(), nn.Sequential(nn.Identity(), Failing())

    def forward(self, x):
        return self.blocks(self.stem(x))


def hooks(net):
    return [hook for module in net.modules() for hook in (*module._forward_hooks, *module._forward_pre_hooks)]


def test_the_innermost_module_is_named_and_no_hook_stays():
    net = Net()
    with pytest.raises(RiemError) as caught, guarded(net, 'run'):
        net(torch.zeros(1))
    said = ' '.join(str(KeyError('seventh\n  key')).split())
    assert str(caught.value) == (
        f'Net: expected it to run, found that module blocks.1 (Failing) fails (KeyError: {said}); '
        'use --metric identity, which does not run it'
    )
    assert isinstance(caught.value.__cause__, KeyError) and not hooks(net)


def test_an_error_outside_of_modules_names_the_network():
    said = r'Net: .* found that Net fails \(ZeroDivisionError: .*\); do without'
    with pytest.raises(RiemError, match=said), guarded(Net(), 'run', 'do without'):
        1 / 0  # noqa: B018


def test_errors_of_the_project_and_ends_of_the_program_pass():
    for error in (RiemError('as it is'), KeyboardInterrupt()):
        with pytest.raises(type(error)) as caught, guarded(Net(), 'run'):
            raise error
        assert caught.value is error


def test_a_long_reason_that_is_told_again_is_told_once():
    try:
        try:
            raise TypeError('x' * 300)
        except TypeError as error:
            raise TypeError(f'{error}, again') from error
    except TypeError as error:
        assert 'because' not in in_one_line(error)


def test_a_reason_has_one_line_and_its_cause():
    try:
        try:
            raise ImportError("No module named 'lvis'")
        except ImportError as error:
            raise RuntimeError('the set\ncannot be read ' + 'x' * 500) from error
    except RuntimeError as error:
        told = in_one_line(error)
    assert told.startswith('RuntimeError: the set cannot be read xxx') and '\n' not in told and len(told) < 300
    assert told.endswith("because of ImportError: No module named 'lvis'")
    assert in_one_line(ValueError()) == 'ValueError'
