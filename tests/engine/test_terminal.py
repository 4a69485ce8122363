import pytest
from rich.table import Table

from mmriem.engine.terminal import plain_console


@pytest.mark.parametrize('name', ['[/x]', '[v1] net', 'a [bold]b[/bold]', ':smile:', '[link=http://x]y', '\\[z]'])
def test_names_are_printed_word_for_word(name, capsys):
    console = plain_console(80)
    table = Table(title=name)
    table.add_column(f'column {name}')
    table.add_row(f'cell {name}')
    console.print(table)
    console.print(f'line {name}')
    printed = capsys.readouterr().out
    assert all(f'{word}{name}' in printed for word in ('', 'column ', 'cell ', 'line '))
    assert '\x1b' not in printed
