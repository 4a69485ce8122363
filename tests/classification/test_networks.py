"""The plain networks: shapes, sizes, and names of weights."""

import pytest
import torch
from torch import nn

from mmriem.classification import MLP, LeNet5, SmallImageResNet, VisionTransformer


@pytest.mark.parametrize(
    ('network', 'shape', 'classes', 'parameters'),
    [
        (LeNet5(), (2, 1, 28, 28), 10, 61_706),
        (LeNet5(image_size=32), (2, 1, 32, 32), 10, 61_706),
        (LeNet5(7, channels=3, image_size=40), (2, 3, 40, 40), 7, 456 + 2416 + 120 * 785 + 84 * 121 + 7 * 85),
        (MLP(hidden=30), (2, 1, 28, 28), 10, 785 * 30 + 310),
        (SmallImageResNet(18), (2, 3, 32, 32), 100, 11_220_132),
        (SmallImageResNet(50, width=8), (2, 3, 16, 16), 100, None),
        (VisionTransformer(32, 4, 192, 2, 3, classes=5), (2, 3, 32, 32), 5, None),
    ],
)
def test_shapes_and_sizes(network, shape, classes, parameters):
    assert network.eval()(torch.zeros(shape)).shape == (2, classes)
    assert parameters is None or sum(x.numel() for x in network.parameters()) == parameters


def test_sizes_of_the_published_networks():
    """On the meta device: no weight is drawn."""
    with torch.device('meta'):
        found = [
            sum(x.numel() for x in network.parameters())
            for network in (VisionTransformer(), VisionTransformer(width=384, heads=6), SmallImageResNet(50))
        ]
    assert found == [86_567_656, 22_050_664, 23_705_252]


def test_names_are_those_of_torchvision_and_timm():
    with torch.device('meta'):
        resnet, vit = set(SmallImageResNet(50).state_dict()), set(VisionTransformer().state_dict())
    assert {'conv1.weight', 'layer1.0.downsample.1.running_var', 'layer4.2.conv3.weight', 'fc.bias'} <= resnet
    assert {
        'cls_token',
        'pos_embed',
        'patch_embed.proj.bias',
        'blocks.11.attn.qkv.weight',
        'blocks.0.mlp.fc2.bias',
    } <= vit
    assert {'norm.weight', 'head.weight', 'blocks.3.norm2.bias', 'blocks.0.attn.proj.weight'} <= vit


def test_a_block_of_the_transformer_is_that_of_torch():
    block = VisionTransformer(8, 4, 16, 1, 4).blocks[0].eval()
    stock = nn.TransformerEncoderLayer(16, 4, 64, 0.0, 'gelu', 1e-6, batch_first=True, norm_first=True).eval()
    names = {'attn.qkv.': 'self_attn.in_proj_', 'attn.proj.': 'self_attn.out_proj.', 'mlp.fc': 'linear'}
    own = block.state_dict()
    for name, its in names.items():
        own = {key.replace(name, its): tensor for key, tensor in own.items()}
    stock.load_state_dict(own)
    x = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.allclose(block(x), stock(x), atol=1e-6)


def test_the_transformer_classifies_by_its_class_token_alone():
    vit = VisionTransformer(8, 4, 16, 0, 4, classes=3)
    expected = vit.head(vit.norm(vit.cls_token[:, 0] + vit.pos_embed[:, 0]))
    assert torch.equal(vit(torch.randn(1, 3, 8, 8)), expected)
