import csv

import pytest


@pytest.fixture
def benchmark_speed(call_here, tools, tiny_config):
    """Run the tool on the tiny detector, with a small image."""
    fixed = ['--metric', 'identity', '--threads', '1', '--shape', '64', '96', '--small', '64', '96', '--repeats', '1']
    return lambda *arguments: call_here(tools / 'measure' / 'speed.py', tiny_config, *fixed, *arguments)


@pytest.mark.parametrize('representation', ['lattice', 'bilinear'])
def test_a_row_for_each_network_and_its_stages(benchmark_speed, tiny_config, tmp_path, representation):
    arguments = ['--representation', representation, '--bits', '8', '--out', 'out/speed']
    assert benchmark_speed(*arguments) is None
    (row,) = csv.DictReader((tmp_path / 'out' / 'speed.csv').open())
    assert row['network'] == tiny_config.stem and int(row['bytes']) > 0 and int(row['elements']) > 0
    timed = ('encode s', 'read s', 'decode s', 'load s', 'torch.load s', 'dense s/image', 'live s/image')
    assert all(float(row[key]) > 0 for key in timed)
    tables = (tmp_path / 'out' / 'speed.md').read_text().split('\n\n')
    assert '| network | weights |' in tables[0] and ' % |' in tables[1] and 'us/element' in tables[2]
    shares = [int(cell.strip(' %')) for cell in tables[1].splitlines()[-1].split('|')[2:-1]]
    assert 95 <= sum(shares) <= 105
    images, memory = (rows_of(table) for table in tables[3:5])
    assert [row['image'] for row in images] == ['64x96']
    ways = ['dense', 'live', 'compressed']
    assert all(float(images[0][f'{way} s/image']) > 0 for way in ways)
    assert [(row['image'], row['weights are']) for row in memory] == [('64x96', way) for way in ways]
    assert all(float(row['peak MB']) > 50 and float(row['first detection s']) > 0 for row in memory)
    assert 'measure/speed.py' in tables[5]


def rows_of(table):
    """The rows of a Markdown table by the names of its columns."""
    names, _, *lines = ([cell.strip() for cell in line.strip('|').split('|')] for line in table.splitlines())
    return [dict(zip(names, line)) for line in lines]


def test_seconds_of_loading_can_be_left_out(benchmark_speed, tmp_path):
    assert benchmark_speed('--held', '--ways', 'dense', '--out', 'out/held') is None
    (row,) = csv.DictReader((tmp_path / 'out' / 'held.csv').open())
    assert row['load s'] == row['read s'] == '' and float(row['dense s/image']) > 0


def test_as_many_checkpoints_as_configs(benchmark_speed):
    assert 'expected one for each of 1 configs, found 2' in benchmark_speed('--checkpoints', 'a.pth', 'b.pth')
