"""`mmriem agree`."""

import json

import pytest

from mmriem.cli import call


@pytest.fixture
def agree(monkeypatch, tmp_path, tiny_config, runner_checkpoint, riem_file, capsys):
    """Run the command on the tiny detector; gives the exit status, and what is printed on stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        status = None
        try:
            call(
                'agree', [*map(str, (tiny_config, runner_checkpoint, riem_file, '--out', 'here', *arguments))], 'agree'
            )
        except SystemExit as end:
            status = end.code
        return status, capsys.readouterr().out

    return run


def test_images_of_a_folder(agree, coco_data, tmp_path):
    status, printed = agree('--images', coco_data / 'images', '--score', 0.1)
    assert status is None
    told = json.loads((tmp_path / 'here' / 'agreement.json').read_text())
    assert told['images']['kind'] == 'folder'
    assert told['names'] == ['0.png', '1.png', '2.png']
    assert len(told['quality']) == told['count'] == 3
    assert f'{100 * told["AP"]:.1f}' in printed
    assert 'On 3 images of the folder images the original finds' in printed
    assert {row['class'] for row in told['by_class']} <= {'square', 'bar'}
    assert len(list((tmp_path / 'here').glob('0?_?.png'))) == 3


def test_procedural_images_and_json(agree, tmp_path):
    status, printed = agree('--image-count', 3, '--score', 0.05, '--json', '--worst', 1)
    assert status is None
    told = json.loads(printed)
    assert told == json.loads((tmp_path / 'here' / 'agreement.json').read_text())
    assert (told['images']['kind'], told['images']['seed'], told['count']) == ('procedural', 1, 3)
    assert [path.name[:3] for path in (tmp_path / 'here').glob('*.png')] == ['01_']


def test_files_that_are_there_stay_without_force(agree, tmp_path):
    (tmp_path / 'here').mkdir()
    (tmp_path / 'here' / 'mine.txt').write_text('mine')
    status, _ = agree('--image-count', 1)
    assert 'expected an empty folder or none' in status
    assert [path.name for path in (tmp_path / 'here').iterdir()] == ['mine.txt']
    assert agree('--image-count', 1, '--score', 0.05, '--force')[0] is None


@pytest.mark.parametrize(
    'arguments, words',
    [
        (['--image-count', 1, '--score', 0.999], 'expected objects; give images that have some'),
        (['--score', 30], 'expected a number between 0 and 1'),
        (['--images', 'nowhere'], 'expected a folder of images'),
        (['--image-count', -1], 'expected 0 (by their size) or more'),
    ],
)
def test_wrong_arguments_are_one_line_and_write_nothing(agree, tmp_path, arguments, words):
    status, _ = agree(*arguments)
    assert words in status
    assert '\n' not in status
    assert not (tmp_path / 'here').exists()
