import csv

from mmriem.benchmark.table import COLUMNS, smallest, write_results

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
    assert '| a | peer | bits=4 | 400 | 3.20 | 79.00 | bits=2 | 200 |\n' in text
    assert '- a: 0.750 (ours over peer); peers recalibrated: 1.500 (ours over peer)\n' in text
    assert '- b: no such file of a peer; peers recalibrated: no such file of a peer\n' in text
    assert text.index('Bytes of the smallest') < text.index('`python ') < text.index('cores, torch')
