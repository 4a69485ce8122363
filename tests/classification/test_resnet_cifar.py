import subprocess
import sys

import pytest
import torch

from mmriem.classification import resnet20, resnet56
from mmriem.classification.resnet_cifar import BasicBlock


@pytest.mark.parametrize(('factory', 'parameters', 'weights'), [(resnet20, 269_722, 20), (resnet56, 853_018, 56)])
def test_sizes_are_those_of_the_paper(factory, parameters, weights):
    model = factory()
    assert sum(x.numel() for x in model.parameters()) == parameters
    assert sum(x.ndim >= 2 for x in model.parameters()) == weights
    assert model.eval()(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


def test_names_of_the_trained_weights():
    keys = resnet20().state_dict()
    assert {'conv1.weight', 'bn1.running_var', 'layer3.2.conv2.weight', 'layer2.0.bn1.bias', 'linear.bias'} <= set(keys)


def test_shortcut_takes_every_other_pixel_and_pads_channels_on_both_sides():
    block = BasicBlock(2, 4, stride=2).eval()
    torch.nn.init.zeros_(block.bn2.weight)
    x = torch.rand(1, 2, 6, 6)
    expected = torch.zeros(1, 4, 3, 3)
    expected[:, 1:3] = x[:, :, [0, 2, 4]][..., [0, 2, 4]]
    assert torch.equal(block(x), expected)


def test_the_package_loads_nothing_of_mm():
    program = 'import mmriem.classification, sys; print([m for m in sys.modules if m.split(".")[0][:2] == "mm"])'
    done = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True, check=True)
    loaded = done.stdout.replace("'", '').strip('[]\n').split(', ')
    assert all(name.partition('.')[0] in ('mmap', 'mmriem') for name in loaded)
