"""Package metadata.

The bounds are open upwards: an environment that has torch, numpy, mmengine, mmcv and mmdet keeps them as they are when
mmriem is installed into it. docs/install.md says which versions were tried. mmcv is in no extra: which build of it fits
depends on torch, and pip cannot know.
"""

import os
import re
import shutil
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).parent
MIM = ('configs', 'tools', 'model-index.yml')
"""What OpenMIM and `mmriem::FOLDER/NAME.py` in a config look for in the folder `.mim` of an installed package."""


class BuildWithMim(build_py):
    """Copies `MIM` into the built package; in an editable install links to it."""

    def run(self) -> None:
        super().run()
        editable = getattr(self, 'editable_mode', False)
        target = HERE / 'mmriem' / '.mim' if editable else Path(self.build_lib) / 'mmriem' / '.mim'
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        for name in MIM:
            if editable:
                (target / name).symlink_to(os.path.relpath(HERE / name, target))
            elif (HERE / name).is_dir():
                shutil.copytree(HERE / name, target / name, ignore=shutil.ignore_patterns('__pycache__'))
            else:
                shutil.copy2(HERE / name, target / name)


def version() -> str:
    source = (HERE / 'mmriem' / 'version.py').read_text(encoding='utf-8')
    return re.search(r"__version__ = '([^']+)'", source).group(1)


def compiled(module: str) -> Extension:
    return Extension(
        module,
        [module.replace('.', '/') + '.c'],
        depends=['mmriem/core/coding/native.h'],
        extra_compile_args=[] if os.name == 'nt' else ['-O3', '-ffp-contract=off'],
        optional=True,
    )


setup(
    name='mmriem',
    version=version(),
    description='Data-free compression of MMDetection detectors with Riemannian neuronal states',
    long_description=(HERE / 'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    license_files=['LICENSE'],
    python_requires='>=3.10',
    packages=find_packages(include=['mmriem', 'mmriem.*']),
    # optional: without a C compiler the package installs all the same, and decodes in Python
    ext_modules=[compiled('mmriem.core.coding._decoder'), compiled('mmriem.core.representations.lattice._search')],
    cmdclass={'build_py': BuildWithMim},
    entry_points={'console_scripts': ['mmriem = mmriem.cli:main']},
    install_requires=['torch>=2.0', 'numpy>=1.24', 'safetensors>=0.4', 'constriction>=0.5,<0.6'],
    extras_require={
        # one of these two, beside an mmcv with its compiled ops
        'openmmlab': ['mmengine>=0.10', 'mmdet>=3.0', 'pycocotools', 'rich'],
        'onedl': ['onedl-mmengine>=0.10.12', 'onedl-mmdetection>=3.5', 'pycocotools', 'rich'],
        'classification': ['mmengine>=0.10', 'rich'],
        'timm': ['timm'],
        'demo': ['scikit-learn'],
        'onnx': ['onnx', 'onnxscript'],  # tools/export.py --to model.onnx
        'completion': ['shtab'],  # mmriem completion SHELL
        # peers of the benchmark, each for an environment of its own: they pin numpy below 2, or add torchvision
        'hqq': ['hqq==0.2.8.post1'],
        'nncodec': ['nncodec==2.1.3'],
        'dev': ['pytest', 'hypothesis', 'ruff', 'mypy'],
    },
)
