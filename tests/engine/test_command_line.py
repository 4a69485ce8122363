import numpy as np
import pytest
from mmengine.config import Config
from torch.utils.data import DataLoader

from mmriem.core.errors import RiemError
from mmriem.engine.command_line import build_runner, run


class Files:
    """A dataset whose files are not there."""

    def __len__(self):
        return 1

    def __getitem__(self, index):
        return np.fromfile('/absent/image.png')


def read_in_a_worker():
    next(iter(DataLoader(Files(), num_workers=1)))


def open_annotations():
    with open('/absent/annotations.json'):
        pass


def fail():
    raise RiemError('x.riem: expected a,\n found b')


@pytest.mark.parametrize(
    ('main', 'message'),
    [
        (fail, 'error: x.riem: expected a, found b'),
        (open_annotations, 'error: /absent/annotations.json: No such file or directory; check the paths'),
        (read_in_a_worker, "No such file or directory: '/absent/image.png'; check the paths"),
    ],
)
def test_one_line_and_status_1(main, message):
    with pytest.raises(SystemExit) as caught:
        run(main)
    assert message in caught.value.code and '\n' not in caught.value.code


def test_bugs_keep_their_traceback():
    with pytest.raises(ZeroDivisionError):
        run(lambda: 1 / 0)


def test_the_log_of_a_runner_has_no_words_of_renamings(tiny_config, tmp_path, caplog):
    config = Config.fromfile(tiny_config)
    config.merge_from_dict(dict(work_dir=str(tmp_path), experiment_name='renamings'))
    logger = build_runner(config).logger
    logger.addHandler(caplog.handler)
    for message in (
        '"FileClient" will be deprecated in future.',
        '"HardDiskBackend" is the alias of it',
        'loss is nan',
    ):
        logger.warning(message)
    assert caplog.messages == ['loss is nan']
