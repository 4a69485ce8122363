import csv
import json
import shutil

import pytest


@pytest.fixture
def compare(call_here, tools, tiny_config, runner_checkpoint, tmp_path):
    """Run tools/compare.py on the tiny detector, its config and checkpoint side by side."""
    shutil.copy(tiny_config, tmp_path / 'net.py')
    shutil.copy(runner_checkpoint, tmp_path / 'net.pth')

    def run(*arguments):
        return call_here(tools / 'compare.py', 'net.py', '--out', 'o', *arguments)

    return run


def table(folder):
    with open(folder / 'table.csv', newline='') as file:
        return list(csv.DictReader(file))


def test_one_row_for_each_file_and_the_original(compare, tmp_path):
    assert compare('--representations', 'bilinear', '--ratios', '0.15', '0.3') is None
    original, small, large = table(tmp_path / 'o')
    assert (original['method'], original['ratio']) == ('original, fp32', '1.0')
    assert 0 < float(original['mAP']) <= 1
    for row, ratio in ((small, 0.15), (large, 0.3)):
        riem = tmp_path / 'o' / f'net-bilinear-{ratio:.2f}-auto.riem'
        assert int(row['bytes']) == riem.stat().st_size
        assert float(row['ratio']) == pytest.approx(riem.stat().st_size / int(original['bytes']))
        assert float(row['ratio']) <= ratio
    assert float(large['SNR dB']) > float(small['SNR dB'])
    text = (tmp_path / 'o' / 'table.md').read_text()
    assert text.count('| net |') == 3 and 'compare.py net.py' in text
    assert (tmp_path / 'o' / 'picture.png').stat().st_size > 5000


def test_the_figures_are_those_of_the_test_tool(compare, call_here, tools, tmp_path, capsys):
    assert compare('--representations', 'bilinear', '--ratios', '0.3') is None
    stem = 'o/net-bilinear-0.30-auto'
    assert call_here(tools / 'test.py', f'{stem}.py', f'{stem}.riem', '--work-dir', 'w') is None
    (log,) = (tmp_path / 'w').glob('*/*.json')
    assert float(table(tmp_path / 'o')[1]['mAP']) == json.loads(log.read_text())['coco/bbox_mAP']


def test_reuse_keeps_finished_files(compare, tmp_path):
    arguments = ['--representations', 'bilinear', '--ratios', '0.15', '--reuse']
    assert compare(*arguments) is None
    riem = tmp_path / 'o' / 'net-bilinear-0.15-auto.riem'
    before = riem.stat().st_mtime_ns
    assert compare(*arguments) is None
    assert riem.stat().st_mtime_ns == before
    assert compare(*arguments[:-1]) is None
    assert riem.stat().st_mtime_ns > before


def test_states_of_the_same_bits_are_not_fitted_twice(compare, tmp_path):
    assert compare('--representations', 'bilinear', '--ratios', '0.4', '--state-bits', '0', '8') is None
    rows = table(tmp_path / 'o')
    assert [row['method'] for row in rows[1:]] == ['mmriem bilinear', 'mmriem bilinear, 8-bit states']
    assert rows[1]['bytes'] == rows[2]['bytes']
    assert not (tmp_path / 'o' / 'net-bilinear-0.40-8.riem').exists()


def test_data_root_replaces_the_stated_one(compare, coco_data, tmp_path):
    text = (tmp_path / 'net.py').read_text().replace(str(coco_data), '../shared/data/set')
    (tmp_path / 'net.py').write_text(text)
    (tmp_path / 'elsewhere').mkdir()
    (tmp_path / 'elsewhere' / 'set').symlink_to(coco_data)
    arguments = ['--representations', 'bilinear', '--ratios', '0.3']
    assert '../shared/data/set' in compare(*arguments)
    assert compare(*arguments, '--data-root', 'elsewhere') is None


def test_as_many_checkpoints_as_configs(compare):
    assert 'expected 1, one for each config, found 2' in compare('--checkpoints', 'a.pth', 'b.pth')


def test_bits_and_the_default(compare, tmp_path):
    assert compare('--representations', 'bilinear', '--default', '--bits', '6') is None
    rows = table(tmp_path / 'o')
    assert [row['asked'] for row in rows] == ['-', 'default', '6 bits']
    assert 0.17 < float(rows[1]['ratio']) <= 0.19
    report = json.loads((tmp_path / 'o' / 'net-bilinear-6-bits-auto.json').read_text())
    assert 5 < report['totals']['bits_per_weight'] <= 6


def test_norms_and_biases_are_trained_on_request(compare, tmp_path):
    assert compare('--representations', 'bilinear', '--bits', '6', '--tune', '2') is None
    report = json.loads((tmp_path / 'o' / 'net-bilinear-6-bits-auto-tuned-2.json').read_text())
    assert report['settings']['tuning'] == 2 and report['totals']['tuning']['before'] > 0


def test_plain_rounding_beside_it_and_names(compare, tmp_path):
    arguments = ['--representations', 'bilinear', '--ratios', '0.3', '--rounding', '3', '8', '--names', 'tiny']
    assert compare(*arguments) is None
    original, _, coarse, fine = table(tmp_path / 'o')
    assert {row['detector'] for row in (original, coarse, fine)} == {'tiny'}
    assert [(row['method'], row['asked']) for row in (coarse, fine)] == [
        ('plain rounding', '3 bits'),
        ('plain rounding', '8 bits'),
    ]
    assert int(coarse['bytes']) < int(fine['bytes']) < int(original['bytes']) / 2
    assert float(fine['mAP']) == pytest.approx(float(original['mAP']), abs=0.1)
    assert '--names: expected 1' in compare(*arguments[:4], '--names', 'a', 'b')
