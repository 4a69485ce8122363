import pytest

from mmriem.benchmark.worker import peak_bytes, work
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
    return dict(network=network, method='rounding', file=str(tmp_path / 'file'), threads=1)


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
