"""tools/maintain/test_matrix.py: what it reads off the programs that it runs, and how it writes the table."""

from __future__ import annotations

import importlib.util

import pytest


@pytest.fixture(scope='module')
def matrix(tools):
    import sys

    spec = importlib.util.spec_from_file_location('environments', tools / 'maintain' / 'test_matrix.py')
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ('output', 'expected'),
    [
        ('== 12 failed, 1300 passed, 3 skipped, 2 errors in 9.1s ==', (1300, 14)),
        ('1300 passed in 9 s', (1300, 0)),
        ('no tests ran', (0, 0)),
    ],
)
def test_counts_of_pytest(matrix, output, expected):
    assert matrix.counts(output) == expected


def test_the_last_map_counts(matrix):
    assert matrix.map_of('bbox_mAP: 0.1230 x\nbbox_mAP: 0.7364  bbox_mAP_50: 0.9') == '73.6'


def test_a_row_takes_the_place_of_the_one_before_and_leaves_the_page_alone(matrix, tmp_path):
    page = tmp_path / 'page.md'
    page.write_text(f'a\n{matrix.START}\n| `other` | x |\n| `new` | old |\n{matrix.END}\nb\n')
    row = dict(environment='Python 3.10', passed=5, failed=0, changed=[], bytes=12345, mAP='73.6', run='2026-01-02')
    for _ in range(2):
        matrix.note(page, 'new', row)
    text = '| `new` | Python 3.10 | 5 passed, 0 failed | nothing | 12,345 | 73.6 | 2026-01-02 |'
    assert page.read_text() == f'a\n{matrix.START}\n| `other` | x |\n{text}\n{matrix.END}\nb\n'


def test_the_page_has_a_place_for_the_table(matrix):
    text = matrix.PAGE.read_text(encoding='utf-8')
    assert text.index(matrix.START) < text.index(matrix.END)


def test_a_name_that_is_none_is_told(matrix, capsys):
    with pytest.raises(SystemExit):
        matrix.parse_args(['torch-0.4'])
    assert 'no such environment' in capsys.readouterr().err
