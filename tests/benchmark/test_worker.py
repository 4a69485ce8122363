import pytest
import torch

from mmriem.benchmark.networks import build_network
from mmriem.benchmark.worker import images, peak_bytes, work
from mmriem.classification import resnet20
from mmriem.core.errors import RiemError


@pytest.fixture
def job(classifier_data, tmp_path):
    network = dict(
        name='small',
        type='classifier',
        architecture='resnet20',
        checkpoint=str(classifier_data / 'net.pth'),
        images=str(classifier_data / 'test.npz'),
    )
    return dict(
        network=network, method='rounding', file=str(tmp_path / 'file'), threads=1, images=str(tmp_path / 'images')
    )


def test_peak_memory_is_not_that_of_the_process_that_starts_the_work(job, tmp_path):
    held = b'x' * 1_500_000_000
    assert peak_bytes() > len(held)
    figures = work({**job, 'setting': dict(bits=4)})
    assert 50 < figures['peak_mb'] < 1500 and figures['seconds'] > 0
    assert (tmp_path / 'file').stat().st_size > 0


def test_a_failed_job_tells_its_last_line(job):
    with pytest.raises(RiemError, match=r"TypeError: .* unexpected keyword argument 'colour'"):
        work({**job, 'setting': dict(colour=4)})
    with pytest.raises(RiemError, match=r'^budget: expected room'):
        work({**job, 'method': 'mmriem', 'setting': dict(representation='bilinear', ratio=0.001)})


def test_images_of_a_network_are_made_once_and_their_seconds_count_each_time(job, tmp_path, monkeypatch):
    model = resnet20().train()
    model(torch.rand(8, 3, 32, 32))  # so that its norms have seen something
    torch.save(model.state_dict(), tmp_path / 'seasoned.pth')
    entry = {**job['network'], 'checkpoint': str(tmp_path / 'seasoned.pth')}
    network, folder = build_network(entry), tmp_path / 'images'
    made, seconds = images(network, folder, 1)
    taken = []
    monkeypatch.setattr(torch.optim.Adam, 'step', lambda *_: taken.append(1))
    again, counted = images(network, folder, 1)
    assert not taken and counted == seconds > 0
    assert made.describe() == again.describe() and made.describe()['steps'] == 1
    assert torch.equal(made.run(model, 0, 2)[0], again.run(model, 0, 2)[0])
    images(network, folder, 2)
    assert taken
