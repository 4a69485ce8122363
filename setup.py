"""Package metadata. The mm* packages are an extra: their forks install modules of the same names."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent


def version() -> str:
    source = (HERE / 'mmriem' / 'version.py').read_text(encoding='utf-8')
    return re.search(r"__version__ = '([^']+)'", source).group(1)


setup(
    name='mmriem',
    version=version(),
    description='Data-free compression of MMDetection detectors with Riemannian neuronal states',
    long_description=(HERE / 'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    python_requires='>=3.9',
    packages=find_packages(include=['mmriem', 'mmriem.*']),
    install_requires=['torch>=2.6', 'numpy>=1.24', 'safetensors>=0.4', 'constriction>=0.5,<0.6'],
    extras_require={
        # mmcv must be built with its ops, see tools/setup_env.sh
        'mmdet': ['mmengine>=0.10.7', 'mmcv>=2.1.0,<2.2.0', 'mmdet>=3.3.0', 'pycocotools', 'rich'],
        'classification': ['mmengine>=0.10.7', 'opencv-python', 'rich'],
        'timm': ['timm'],
        'demo': ['scikit-learn', 'opencv-python'],
        'dev': ['pytest', 'hypothesis', 'ruff'],
    },
)
