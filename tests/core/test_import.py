"""The core stands alone: importing it loads no mm* package."""

import subprocess
import sys

PROGRAM = """
import importlib, pkgutil, sys
import mmriem.core
for module in pkgutil.walk_packages(mmriem.core.__path__, 'mmriem.core.'):
    importlib.import_module(module.name)
tops = {name.partition('.')[0] for name in sys.modules}
print(sorted(name for name in tops if name.startswith('mm') and name != 'mmriem' and name != 'mmap'))
ours = {'.'.join(name.split('.')[:2]) for name in sys.modules if name.startswith('mmriem.')}
print(sorted(ours - {'mmriem.api', 'mmriem.core', 'mmriem.version'}))
"""


def test_core_loads_no_mm_package_and_nothing_above_it():
    done = subprocess.run([sys.executable, '-c', PROGRAM], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ['[]', '[]']
