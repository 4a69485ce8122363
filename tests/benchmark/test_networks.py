import cv2
import numpy as np
import pytest
import torch

from mmriem.benchmark.networks import build_network
from mmriem.classification import efficientnet_lite0, resnet20
from mmriem.core.errors import RiemError
from mmriem.core.images.style_search import DEFAULT


@pytest.fixture
def entry(classifier_data):
    return dict(
        name='small',
        type='classifier',
        architecture='resnet20',
        checkpoint=str(classifier_data / 'net.pth'),
        images=str(classifier_data / 'test.npz'),
    )


def test_classifier_has_the_weights_of_its_checkpoint(entry, classifier_data):
    network = build_network(entry)
    stored = torch.load(classifier_data / 'net.pth', weights_only=True)
    found = network.original().state_dict()
    assert all(torch.equal(found[key], stored[key]) for key in stored)
    assert 0 <= network.accuracy(stored) <= 100
    probe = network.probe()
    said = {'kind': 'procedural', 'seed': 0, 'count': 256, 'size': [32, 32]}
    assert probe.describe() == {**said, 'style': DEFAULT.describe()}  # its norms are fresh
    (logits,) = probe.run(network.original(), 0, 2)
    assert logits.shape == (2, 10)


def test_classifier_of_an_image_folder(tmp_path):
    rng = np.random.default_rng(0)
    for name in ('ant', 'bee'):
        (tmp_path / 'val' / name).mkdir(parents=True)
        cv2.imwrite(str(tmp_path / 'val' / name / 'a.png'), rng.integers(0, 256, (230, 224, 3), np.uint8))
    torch.save(efficientnet_lite0().state_dict(), tmp_path / 'net.pth')
    told = dict(architecture='efficientnet_lite0', checkpoint=str(tmp_path / 'net.pth'), images=str(tmp_path / 'val'))
    network = build_network(dict(name='lite', type='classifier', **told))
    model = network.original()
    with torch.no_grad():
        model.get_parameter('_fc.bias')[1] += 1e3
    assert network.accuracy(model.state_dict()) == 50.0
    cv2.imwrite(str(tmp_path / 'val' / 'bee' / 'b.png'), np.zeros((100, 300, 3), np.uint8))
    with pytest.raises(RiemError, match=r'b\.png: expected an image of at least 224 x 224, found 300 x 100'):
        network.accuracy(model.state_dict())


def test_images_of_the_probe_are_optimised_on_request(entry, tmp_path):
    model = resnet20().train()
    model(torch.rand(8, 3, 32, 32))  # so that its norms have seen something
    torch.save(model.state_dict(), tmp_path / 'seasoned.pth')
    said = build_network({**entry, 'checkpoint': str(tmp_path / 'seasoned.pth')}).probe(1).describe()
    assert (said['kind'], said['steps']) == ('synthetic', 1)


def test_detector_as_the_test_tool_evaluates_it(tiny_config, runner_checkpoint, tmp_path):
    from mmriem.engine.config import read_config
    from mmriem.engine.evaluation import evaluate

    files = dict(config=str(tiny_config), checkpoint=str(runner_checkpoint), logs=str(tmp_path / 'logs'))
    network = build_network(dict(name='tiny', type='detector', **files))
    expected = evaluate(read_config(tiny_config), runner_checkpoint, tmp_path)['coco/bbox_mAP']
    assert expected > 0
    for _ in range(2):
        assert network.accuracy(network.original().state_dict()) == pytest.approx(100 * expected)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (dict(type='segmenter'), "network 'small': expected a type among classifier, detector, found 'segmenter'"),
        (
            dict(architecture='vgg'),
            "expected an architecture among resnet20, resnet56, .*, found 'vgg'",
        ),
        (dict(checkpoint='missing.pth'), 'missing.pth: no such checkpoint'),
        (dict(colour='red'), "unexpected keyword argument 'colour'"),
    ],
)
def test_unfit_entries_are_one_error(entry, change, message):
    with pytest.raises(RiemError, match=message):
        build_network({**entry, **change})
