"""Pictures and tables of results."""

from .curves import draw_curves
from .page import ladder_page, report_page
from .sheet import contact_sheet
from .tables import cells, command_and_machine, machine, markdown, write_csv

__all__ = [
    'cells',
    'command_and_machine',
    'contact_sheet',
    'draw_curves',
    'ladder_page',
    'machine',
    'markdown',
    'report_page',
    'write_csv',
]
