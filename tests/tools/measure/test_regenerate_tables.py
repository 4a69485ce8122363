"""README and docs say what the committed .csv files say."""

import shutil
from pathlib import Path

import pytest

from mmriem.benchmark.names import NAMES
from mmriem.benchmark.overview import overview
from mmriem.benchmark.table import read_rows

ROOT = Path(__file__).parents[3]
PAGES = ('README.md', 'docs/benchmarks.md', 'docs/benchmarks/table.md', 'docs/benchmarks/speed.md')


@pytest.fixture
def regenerate(call_here, tools):
    """Run the tool, wherever in the folder it is."""
    return lambda *arguments: call_here(next(tools.rglob('regenerate_tables.py')), *arguments)


@pytest.fixture
def copy(tmp_path):
    """A copy of the pages and of what they are made from."""
    for name in (*PAGES, 'docs/benchmarks/table.csv', 'docs/benchmarks/speed.csv'):
        (tmp_path / 'copy' / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / 'copy' / name)
    return tmp_path / 'copy'


def test_the_committed_pages_agree_with_their_csv(regenerate, capsys):
    assert regenerate('--check') == 0, capsys.readouterr().out


@pytest.mark.parametrize(
    ('page', 'figure', 'other'),
    [
        ('README.md', '**49.5 in', '**49.4 in'),
        ('docs/benchmarks.md', '0.117', '0.171'),
        ('docs/benchmarks/table.md', '| 550,276 | 16.43 |', '| 550,276 | 15.43 |'),
        ('docs/benchmarks/speed.md', '| 5,308,854 |', '| 5,308,845 |'),
    ],
)
def test_a_figure_that_was_changed_by_hand_is_found_and_put_right(regenerate, copy, page, figure, other, capsys):
    path = copy / page
    good = path.read_text()
    assert figure in good
    path.write_text(good.replace(figure, other))
    assert regenerate('--check', '--root', copy) == 1
    assert capsys.readouterr().out == f'{page}: differs from its .csv\n'
    assert regenerate('--root', copy) == 0 and path.read_text() == good


def test_a_page_without_its_marks_is_an_error(regenerate, copy):
    (copy / 'README.md').write_text('no table here')
    assert 'README.md: expected a line <!-- table: overview --> and after it' in regenerate('--root', copy)


def test_where_no_file_is_within_one_point_the_overview_has_a_dash():
    rows = read_rows(ROOT / 'docs' / 'benchmarks' / 'table.csv')
    few = [
        row for row in rows if row['network'] == 'resnet20' and row['method'] in ('original, fp32', 'mmriem default')
    ]
    (line,) = overview(few).splitlines()[2:]
    assert line.split(' | ')[3] == '-'


def test_the_overview_has_a_line_for_each_network():
    text = overview(read_rows(ROOT / 'docs' / 'benchmarks' / 'table.csv'))
    assert [line.split(' | ')[0].strip('| ') for line in text.splitlines()[2:]] == list(NAMES.values())
    assert all(len(line.split('|')) == 7 for line in text.splitlines())
