"""The classifier of MMEngine's configs."""

from collections import OrderedDict

import pytest
import torch
from mmengine.registry import MODELS
from mmengine.structures import BaseDataElement
from torch import nn

from mmriem.classification import ResNetCIFAR
from mmriem.core.errors import RiemError
from mmriem.engine.checkpoint import load_into

IMAGES = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Maps(nn.Module):
    """Two feature maps, of 2 and 4 channels."""

    def __init__(self, channels=4):
        super().__init__()
        self.conv = nn.Conv2d(3, channels, 3, 2)

    def forward(self, x):
        return x[:, :2], self.conv(x)


def plain(width=5):
    """A factory: a whole network."""
    return nn.Sequential(OrderedDict(flat=nn.Flatten(), fc=nn.Linear(192, width)))


def classifier(backbone, **settings):
    torch.manual_seed(0)
    return MODELS.build(dict(type='mmriem.ImageClassifier', backbone=backbone, **settings)).eval()


def with_head(**settings):
    head = dict(type='mmriem.LinearHead', in_channels=4, num_classes=5)
    return classifier(dict(type=f'{__name__}.Maps'), head=head, **settings)


def test_the_last_maps_are_averaged_over_positions():
    model = with_head()
    expected = model.head.fc(model.backbone.conv(IMAGES).mean((2, 3)))
    assert torch.equal(model(IMAGES), expected) and expected.shape == (3, 5)


def test_a_network_that_gives_logits_itself():
    for backbone in (dict(type=f'{__name__}.plain', width=7), dict(type='mmriem.MLP', inputs=192, classes=7)):
        model = classifier(backbone)
        assert torch.equal(model(IMAGES), model.backbone(IMAGES)) and model(IMAGES).shape == (3, 7)


def test_features_of_another_kind():
    with pytest.raises(RiemError, match=r'Identity: expected features .* found shape \(3, 8, 8\)'):
        classifier(dict(type='torch.nn.Identity'))(IMAGES[:, 0])


def test_loss_is_the_cross_entropy():
    model = classifier(dict(type='mmriem.MLP', inputs=192), label_smoothing=0.1)
    samples = [BaseDataElement(gt_label=torch.tensor([label])) for label in (1, 0, 7)]
    logits = model(IMAGES)
    own = logits.log_softmax(1)
    expected = -(0.9 * own[range(3), [1, 0, 7]] + 0.1 * own.mean(1)).mean()
    assert torch.allclose(model(IMAGES, samples, mode='loss')['loss'], expected)


def test_a_loss_takes_labels():
    with pytest.raises(RiemError, match='expected data samples with gt_label, found none'):
        classifier(dict(type='mmriem.MLP', inputs=192))(IMAGES, mode='loss')


def test_predictions_are_probabilities_in_the_samples():
    model = classifier(dict(type='mmriem.MLP', inputs=192))
    samples = [BaseDataElement(gt_label=torch.tensor([label])) for label in (1, 0, 7)]
    found = model(IMAGES, samples, mode='predict')
    assert all(one is other for one, other in zip(found, samples))
    logits = model(IMAGES)
    for sample, row in zip(found, logits):
        assert torch.allclose(sample.pred_score, row.softmax(0)) and sample.pred_label.tolist() == [int(row.argmax())]
    assert len(model(IMAGES, mode='predict')) == 3
    with pytest.raises(RiemError, match="expected tensor, loss or predict, found 'other'"):
        model(IMAGES, mode='other')


def test_images_are_normalised():
    settings = dict(type='mmengine.ImgDataPreprocessor', mean=[10.0], std=[2.0])
    model = classifier(dict(type='mmriem.MLP', inputs=64), data_preprocessor=settings)
    image = torch.full((1, 8, 8), 14, dtype=torch.uint8)
    sample = BaseDataElement(gt_label=torch.tensor([0]))
    found = model.test_step(dict(inputs=[image], data_samples=[sample]))
    expected = model(torch.full((1, 1, 8, 8), 2.0))[0].softmax(0)
    assert torch.allclose(found[0].pred_score, expected)


def test_weights_of_the_bare_network_load():
    bare = ResNetCIFAR(1)
    model = classifier(dict(type='mmriem.ResNetCIFAR', blocks=1))
    load_into(model, bare.state_dict(), 'bare.pth')
    assert torch.equal(model.backbone.linear.weight, bare.linear.weight)
    load_into(model, model.state_dict(), 'own.pth')


def test_weights_of_a_bare_network_with_a_head_load():
    model = with_head()
    bare = {'conv.weight': torch.ones(4, 3, 3, 3), 'conv.bias': torch.ones(4)}
    bare |= {'fc.weight': torch.full((5, 4), 2.0), 'fc.bias': torch.zeros(5)}
    load_into(model, bare, 'bare.pth')
    assert sorted(model.state_dict()) == [
        'backbone.conv.bias',
        'backbone.conv.weight',
        'head.fc.bias',
        'head.fc.weight',
    ]
    assert torch.equal(model.head.fc.weight, bare['fc.weight'])
    assert torch.equal(model.backbone.conv.weight, bare['conv.weight'])


def test_weights_of_another_network_do_not_load():
    model = classifier(dict(type='mmriem.ResNetCIFAR', blocks=1))
    state_dict = ResNetCIFAR(1).state_dict()
    state_dict['more'] = torch.zeros(2)
    with pytest.raises(RiemError, match=r'x\.pth: does not fit .* unexpected backbone\.more'):
        load_into(model, state_dict, 'x.pth')
    with pytest.raises(RiemError, match=r'missing backbone\.linear\.bias'):
        load_into(model, {k: v for k, v in state_dict.items() if k not in ('more', 'linear.bias')}, 'x.pth')
    with pytest.raises(RiemError, match=r'backbone\.linear\.weight: .*\[3, 64\]'):
        load_into(model, {**state_dict, 'linear.weight': torch.zeros(3, 64)}, 'x.pth')


def test_timm():
    timm = pytest.importorskip('timm', reason='timm is an optional extra: pip install timm')
    model = classifier(dict(type='mmriem.timm', model_name='resnet10t', num_classes=5))
    assert model(torch.zeros(1, 3, 64, 64)).shape == (1, 5)
    load_into(model, timm.create_model('resnet10t', num_classes=5).state_dict(), 'timm.pth')
    with pytest.raises(RiemError, match=r'timm model no_such: .*timm\.list_models'):
        classifier(dict(type='mmriem.timm', model_name='no_such'))
