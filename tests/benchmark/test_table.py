import csv
import itertools
import random

import pytest

from mmriem.benchmark.table import COLUMNS, joined, read_rows, rising, smallest, write_results

ROWS = [
    dict(zip(('network', 'method', 'setting', 'bytes', 'accuracy', 'recalibrated'), values))
    for values in (
        ('a', 'original, fp32', '', 4000, 80.0, None),
        ('a', 'peer', 'bits=2', 200, 50.0, 79.5),
        ('a', 'peer', 'bits=4', 400, 79.0, 79.9),
        ('a', 'peer', 'bits=8', 800, 80.1, 80.0),
        ('a', 'ours', 'ratio=0.1', 100, 78.9, None),
        ('a', 'ours', 'ratio=0.2', 300, 79.5, None),
        ('b', 'original, fp32', '', 4000, 30.0, None),
        ('b', 'peer', 'bits=2', 200, 1.0, 2.0),
        ('b', 'ours', 'ratio=0.1', 300, 29.5, None),
    )
]
for row in ROWS:
    row.update({'bits/weight': row['bytes'] / 125, 'encode s': None, 'decode s': 0.5, 'peak MB': None})


def test_smallest_within_a_point_by_either_measure():
    assert {place: row['bytes'] for place, row in smallest(ROWS).items()} == {
        ('a', 'peer'): 400,
        ('a', 'ours'): 300,
        ('b', 'ours'): 300,
    }
    assert smallest(ROWS, 'recalibrated')['a', 'peer']['bytes'] == 200


def test_the_luckiest_file_is_not_the_smallest_good_one():
    def row(setting, size, accuracy):
        told = {'network': 'a', 'method': 'ours', 'setting': setting, 'bytes': size, 'accuracy': accuracy}
        return {**told, 'recalibrated': None}

    rows = [
        {**row('', 4000, 80.0), 'method': 'original, fp32'},
        row('bits=1.2, tuning=9', 120, 79.4),  # lucky
        row('bits=1.0, tuning=9', 100, 78.0),
        row('bits=1.3, tuning=9', 130, 78.2),
        row('bits=1.4, tuning=9', 140, 79.5),
        row('bits=1.5, tuning=9', 150, 79.3),
        row('bits=1.1', 110, 60.0),  # another curve
        row('bits=1.6', 160, 79.9),
    ]
    found = smallest(rows)['a', 'ours']
    assert (found['bytes'], found['accuracy'], found['smoothed']) == (140, 79.5, pytest.approx(79.4))


def test_the_rising_curve_is_the_closest_one():
    """By brute force: of all ways to cut the values into blocks, the best one with means that rise."""
    draw = random.Random(0)
    for _ in range(50):
        values = [draw.choice([1.0, 2.0, 3.0, 4.5, 7.0]) for _ in range(6)]
        candidates = []
        for cuts in itertools.product([False, True], repeat=5):
            edges = [0, *(at for at, cut in enumerate(cuts, 1) if cut), 6]
            means = [sum(values[a:b]) / (b - a) for a, b in zip(edges, edges[1:]) for _ in range(b - a)]
            if means == sorted(means):
                candidates.append((sum((x - y) ** 2 for x, y in zip(values, means)), means))
        assert rising(values) == pytest.approx(min(candidates)[1])
    assert rising([]) == []


def test_rows_are_read_as_they_were_written(tmp_path):
    write_results(ROWS, tmp_path, ['ours'], [])
    assert read_rows(tmp_path / 'table.csv') == [{key: row[key] for key in COLUMNS} for row in ROWS]


def test_rows_of_a_run_take_the_place_of_earlier_ones():
    def row(network, method, size):
        return {'network': network, 'method': method, 'bytes': size}

    kept = [
        row('b', 'original, fp32', 9),
        row('b', 'ours', 1),
        row('b', 'ours', 2),
        row('b', 'peer', 3),
        row('a', 'peer', 4),
    ]
    rows = [row('b', 'original, fp32', 9), row('b', 'ours', 5), row('c', 'ours', 6)]
    assert joined(kept, rows) == [rows[0], rows[1], kept[3], kept[4], rows[2]]
    assert joined([], rows) == rows and joined(kept, []) == kept


def test_files(tmp_path):
    write_results(ROWS, tmp_path / 'out', ['ours'], ['left out: a, peer: no room'])
    assert sorted(path.name for path in (tmp_path / 'out').iterdir()) == ['picture.png', 'table.csv', 'table.md']
    with open(tmp_path / 'out' / 'table.csv', newline='') as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == list(COLUMNS) and len(rows) == len(ROWS)
    assert (rows[1]['recalibrated'], rows[0]['recalibrated']) == ('79.5', '')
    text = (tmp_path / 'out' / 'table.md').read_text()
    assert '| a | peer | bits=4 | 400 | 3.20 | 79.00 | 79.90 | - | 0.5 | - |\n' in text
    assert '\n\n- left out: a, peer: no room\n\nSmallest file' in text
    assert '| a | peer | bits=4 | 400 | 3.20 | 79.00 | 79.00 | bits=2 | 200 |\n' in text
    assert '- a: 0.750 (ours over peer); peers recalibrated: 1.500 (ours over peer)\n' in text
    assert '- b: no such file of a peer; peers recalibrated: no such file of a peer\n' in text
    assert text.index('Bytes of the smallest') < text.index('`python ') < text.index('cores, torch')
