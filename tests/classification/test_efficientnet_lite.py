import pytest
import torch
import torch.nn.functional as F

from mmriem.classification import efficientnet_lite0
from mmriem.classification.efficientnet_lite import InvertedBottleneck, SameConv2d


def test_the_size_is_that_of_the_trained_network():
    model = efficientnet_lite0().eval()
    assert sum(parameter.numel() for parameter in model.parameters()) == 4_652_008
    assert model(torch.zeros(1, 3, 64, 64)).shape == (1, 1000)


def test_names_of_the_trained_weights():
    keys = efficientnet_lite0(10).state_dict()
    wanted = {'_conv_stem.weight', '_bn0.running_var', '_blocks.0._depthwise_conv.weight', '_blocks.15._bn2.bias'}
    assert wanted <= set(keys) and '_blocks.0._expand_conv.weight' not in keys and len(keys) == 296


@pytest.mark.parametrize('size', [7, 8])
def test_padding_is_that_of_tensorflow(size):
    conv, image = SameConv2d(1, 1, 3, 2, bias=False), torch.rand(1, 1, size, size)
    sides = (1, 1) if size % 2 else (0, 1)  # an odd pixel goes to the right and below
    expected = F.conv2d(F.pad(image, (*sides, *sides)), conv.weight, stride=2)
    assert torch.equal(conv(image), expected) and expected.shape[2] == 4


def test_shortcuts_are_where_shapes_allow_them():
    for block in (
        InvertedBottleneck(4, 4, 3, 1, 6),
        InvertedBottleneck(4, 4, 3, 2, 6),
        InvertedBottleneck(4, 8, 3, 1, 1),
    ):
        torch.nn.init.zeros_(block.eval()._bn2.weight)
        image = torch.rand(1, 4, 6, 6)
        assert block.has_shortcut == torch.equal(block(image), image)
