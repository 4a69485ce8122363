"""Write the config zoo: for each detector drop-in configs at two rates and a live one, and what describes them.

    python tools/maintain/make_zoo.py

A folder of `configs/` gets the configs, a README.md and a metafile.yml; the root gets model-index.yml. What is told of
the uncompressed detectors (mAP, weights, paper) is read from the metafiles of the installed mmdet.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import mmdet
import yaml
from mmengine.config import Config

from mmriem.core.atomic import write_whole
from mmriem.engine.command_line import run
from mmriem.engine.config import read_config

ROOT = Path(__file__).parents[2]
STOCK = Path(find_spec('mmdet').origin).parent / '.mim'
TASKS = {'Object Detection': 'box AP', 'Instance Segmentation': 'mask AP'}
UNMEASURED = 'not measured here: no COCO on the build machine'


@dataclass(frozen=True)
class Detector:
    """A detector of the zoo.

    Attributes:
        base: its uncompressed config, without `.py`: `mmdet::FOLDER/NAME`, or one of the zoo's own, `FOLDER/NAME`.
        bits: the two rates, bits of the file for each weight. Small networks need more (docs/benchmarks.md).
        folder: of `configs/`; where it is empty, that of the base.
    """

    base: str
    bits: tuple[int, int] = (2, 1)

    @property
    def name(self) -> str:
        """The name of the uncompressed config."""
        return self.base.rpartition('/')[2]

    @property
    def folder(self) -> str:
        """The folder of `configs/`."""
        return self.base.rpartition('/')[0].rpartition('::')[2]

    @property
    def rates(self) -> list[str]:
        """The names of the drop-in configs."""
        return [f'{self.name}_riem-{bits}bit' for bits in self.bits]

    @property
    def live(self) -> str:
        """The name of the live config."""
        return f'{self.name}_riem-live'

    @property
    def source(self) -> str:
        """The uncompressed config as a command line names it."""
        return f'{self.base}.py' if '::' in self.base else f'configs/{self.base}.py'

    def config(self) -> Config:
        """The uncompressed config."""
        return read_config(self.source if '::' in self.base else ROOT / self.source)


ZOO = [
    Detector('mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco'),
    Detector('mmdet::faster_rcnn/faster-rcnn_r101_fpn_1x_coco'),
    Detector('mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco'),
    Detector('mmdet::swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco'),
    Detector('mmdet::swin/mask-rcnn_swin-s-p4-w7_fpn_amp-ms-crop-3x_coco'),
    Detector('swin/cascade-mask-rcnn_swin-s-p4-w7_fpn_1x_coco'),
    Detector('mmdet::swin/retinanet_swin-t-p4-w7_fpn_1x_coco'),
    Detector('mmdet::retinanet/retinanet_r18_fpn_1x_coco'),
    Detector('mmdet::retinanet/retinanet_r50_fpn_1x_coco'),
    Detector('mmdet::fcos/fcos_r50-caffe_fpn_gn-head_1x_coco'),
    Detector('mmdet::atss/atss_r50_fpn_1x_coco'),
    Detector('mmdet::detr/detr_r50_8xb2-150e_coco'),
    Detector('mmdet::deformable_detr/deformable-detr_r50_16xb2-50e_coco'),
    Detector('mmdet::dino/dino-4scale_r50_8xb2-12e_coco'),
    Detector('mmdet::dino/dino-5scale_swin-l_8xb2-12e_coco'),
    Detector('mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco', bits=(3, 2)),
    Detector('mmdet::rtmdet/rtmdet_l_8xb32-300e_coco'),
    Detector('mmdet::yolox/yolox_nano_8xb8-300e_coco', bits=(5, 4)),
    Detector('mmdet::yolox/yolox_s_8xb8-300e_coco', bits=(3, 2)),
]
TITLES = {
    'atss': 'ATSS',
    'deformable_detr': 'Deformable DETR',
    'detr': 'DETR',
    'dino': 'DINO',
    'faster_rcnn': 'Faster R-CNN',
    'fcos': 'FCOS',
    'mask_rcnn': 'Mask R-CNN',
    'retinanet': 'RetinaNet',
    'rtmdet': 'RTMDet',
    'swin': 'Swin Transformer',
    'yolox': 'YOLOX',
}

DROP_IN = '''"""Decoded from a .riem file of {rate} per weight when it is loaded; README.md tells how to make it."""

_base_ = ['{base}', '../_base_/drop_in.py']

default_hooks = dict(strict_load=_base_.strict_load)
{pretrained}load_from = '{riem}'
'''
PRETRAINED = 'model = dict(backbone=dict(init_cfg=None))  # the file has every weight\n'
OTHER_RATE = '''"""Decoded from a .riem file of {rate} per weight when it is loaded; README.md tells how to make it."""

_base_ = './{first}.py'

load_from = '{riem}'
'''
LIVE = '''"""With a {parts} that hold states instead of weights: those of a .riem file, of whatever rate."""

_base_ = './{first}.py'

riem = dict(representation='lattice', bits={bits})  # of an ordinary checkpoint, which is fitted when it is loaded
model = dict(
{settings}
)
'''


def rate(bits: int) -> str:
    """A number of bits in words."""
    return f'{bits} bit{"s" * (bits > 1)}'


def riem_file(name: str) -> str:
    """Where the file of a drop-in config lies, as seen from where the tools are started."""
    return f'work_dirs/zoo/{name}.riem'


def configs_of(detector: Detector) -> Iterator[tuple[str, str]]:
    """Name and text of the configs of a detector."""
    config = detector.config()
    first = detector.rates[0]
    backbone = config.model.backbone
    for name, bits, template in zip(detector.rates, detector.bits, (DROP_IN, OTHER_RATE)):
        yield (
            name,
            template.format(
                base=detector.base + '.py' if '::' in detector.base else f'./{detector.name}.py',
                first=first,
                rate=rate(bits),
                riem=riem_file(name),
                pretrained=PRETRAINED if backbone.get('init_cfg') else '',
            ),
        )
    parts = [part for part in ('backbone', 'neck') if part in config.model]
    settings = [f"    {part}=dict(type='mmriem.RieM{config.model[part].type}', riem=riem)," for part in parts]
    yield (
        detector.live,
        LIVE.format(
            first=first,
            parts=' and a '.join(parts),
            bits=detector.bits[0],
            settings='\n'.join(settings),
        ),
    )


def stock_metafiles() -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]]]:
    """What mmdet's metafiles tell of its models, by the path of their config, and of its collections, by name."""
    models: dict[str, dict[str, Any]] = {}
    collections: dict[str, dict[str, Any]] = {}
    for path in yaml.safe_load((STOCK / 'model-index.yml').read_text(encoding='utf-8'))['Import']:
        content = yaml.safe_load((STOCK / path).read_text(encoding='utf-8'))
        for model in content.get('Models', []):
            models.setdefault(model.get('Config', ''), model)
        collections.update((collection['Name'], collection) for collection in content.get('Collections') or [])
    return models, collections


def metrics(told: dict[str, Any] | None) -> dict[str, float]:
    """`box AP` and `mask AP` of a model, as far as its metafile tells them."""
    found = {}
    for result in (told or {}).get('Results', []):
        key = TASKS.get(result['Task'])
        if key in result.get('Metrics', {}):
            found[key] = result['Metrics'][key]
    return found


def metafile(folder: str, detectors: list[Detector], models: dict, collections: dict) -> dict[str, Any]:
    """The content of the metafile of a folder."""
    title = TITLES[folder]
    told = [models.get(f'{detector.source.replace("mmdet::", "configs/")}') for detector in detectors]
    papers = [(known.get('Paper') or collections[known['In Collection']].get('Paper')) for known in told if known]
    collection = {
        'Name': f'RieM {title}',
        'Metadata': {'Training Data': 'COCO', 'Compression Data': 'none'},
        'README': f'configs/{folder}/README.md',
        **({'Paper': papers[0]} if papers and papers[0] else {}),
    }
    entries = []
    for detector, known in zip(detectors, told):
        original = {'Original Config': detector.source}
        original |= {f'Original {key}': value for key, value in metrics(known).items()}
        if known and known.get('Weights'):
            original['Original Weights'] = known['Weights']
        rates = [*zip(detector.rates, detector.bits), (detector.live, detector.bits[0])]
        entries += [
            {
                'Name': name,
                'In Collection': collection['Name'],
                'Config': f'configs/{folder}/{name}.py',
                'Metadata': {'Bits per Weight': bits, 'Compressed AP': UNMEASURED, **original},
            }
            for name, bits in rates
        ]
    return {'Collections': [collection], 'Models': entries}


README = """# {title}

Detectors of mmdet, compressed without data. AP and weights of the uncompressed detectors are quoted from the metafiles
of mmdet {version}{missing}. AP of the compressed ones: {unmeasured}.

| detector | box AP | mask AP | weights | drop-in | live |
|---|---|---|---|---|---|
{rows}

The three commands, here for `{name}`: check the COCO folder, compress, evaluate.

    python tools/maintain/check_coco.py data/coco
    python tools/compress.py {source} \\
        {weights} \\
        --bits {bits} --out {riem}
    python tools/test.py configs/{folder}/{config}.py {riem}

A COCO folder elsewhere is named to the last one by

    --cfg-options test_dataloader.dataset.data_root=/path/to/coco/ \\
        test_evaluator.ann_file=/path/to/coco/annotations/instances_val2017.json

The live config takes the same file. More: [docs/zoo.md](../../docs/zoo.md), [docs/coco.md](../../docs/coco.md).
"""


def readme(folder: str, detectors: list[Detector], models: dict) -> str:
    """The README of a folder."""
    rows, missing = [], []
    for detector in detectors:
        known = models.get(detector.source.replace('mmdet::', 'configs/'))
        found = metrics(known)
        weights = f'[pth]({known["Weights"]})' if known and known.get('Weights') else 'yours'
        drop_in = ', '.join(f'[{rate(bits)}]({name}.py)' for name, bits in zip(detector.rates, detector.bits))
        if not known:
            missing.append(detector.name)
        cells = [detector.name, *(f'{found[key]}' if key in found else '-' for key in TASKS.values()), weights, drop_in]
        rows.append(f'| {" | ".join(cells)} | [states]({detector.live}.py) |')
    first = detectors[0]
    known = models.get(first.source.replace('mmdet::', 'configs/')) or {}
    return README.format(
        title=TITLES[folder],
        version=mmdet.__version__,
        missing=f'; it publishes no weights of {", ".join(missing)}' if missing else '',
        unmeasured=UNMEASURED,
        rows='\n'.join(rows),
        name=first.name,
        source=first.source,
        weights=known.get('Weights', 'CHECKPOINT'),
        bits=first.bits[0],
        riem=riem_file(first.rates[0]),
        folder=folder,
        config=first.rates[0],
    )


def zoo() -> dict[str, str]:
    """The text of every file of the zoo, by its path from the root."""
    models, collections = stock_metafiles()
    files, folders = {}, sorted({detector.folder for detector in ZOO})
    for folder in folders:
        detectors = [detector for detector in ZOO if detector.folder == folder]
        for detector in detectors:
            for name, text in configs_of(detector):
                files[f'configs/{folder}/{name}.py'] = text
        described = metafile(folder, detectors, models, collections)
        files[f'configs/{folder}/metafile.yml'] = yaml.safe_dump(described, sort_keys=False, width=200)
        files[f'configs/{folder}/README.md'] = readme(folder, detectors, models)
    imports = [f'configs/{folder}/metafile.yml' for folder in folders]
    files['model-index.yml'] = yaml.safe_dump({'Import': imports})
    return files


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--root', type=Path, default=ROOT, help='where to write (default: the project)')
    args = parser.parse_args()
    files = zoo()
    for name, text in files.items():
        path = args.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, text)
    print(f'{args.root}: {len(files)} files')


if __name__ == '__main__':
    run(main)
