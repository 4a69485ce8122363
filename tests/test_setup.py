"""setup.py: a wheel brings what OpenMIM and `mmriem::FOLDER/NAME.py` look for, and the compiled parts."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_wheel_holds_configs_tools_and_index(tmp_path):
    source = tmp_path / 'source'
    skipped = shutil.ignore_patterns('__pycache__', '.mim')
    for folder in ('mmriem', 'configs', 'tools'):
        shutil.copytree(ROOT / folder, source / folder, ignore=skipped)
    for name in ('setup.py', 'MANIFEST.in', 'README.md', 'model-index.yml', 'requirements.txt'):
        shutil.copy2(ROOT / name, source)
    command = [sys.executable, 'setup.py', '-q', 'bdist_wheel', '--dist-dir', str(tmp_path)]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    held = set(zipfile.ZipFile(next(tmp_path.glob('*.whl'))).namelist())
    for folder in ('configs', 'tools'):
        for path in (source / folder).rglob('*.*'):
            assert f'mmriem/.mim/{path.relative_to(source)}' in held
    assert {'mmriem/.mim/model-index.yml', 'mmriem/core/representations/lattice/representation.py'} <= held
    for module in ('coding/_decoder.', 'representations/lattice/_search.'):
        assert any(name.startswith(f'mmriem/core/{module}') for name in held)
