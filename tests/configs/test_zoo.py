"""The config zoo, narrowed: each detector runs, is compressed, and computes the same as drop-in and live."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from mmdet.apis import init_detector
from mmdet.structures import DetDataSample
from mmengine.config import Config, ConfigDict
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmriem.core.file import reading
from mmriem.core.live.states import WeightStates
from mmriem.core.pipeline.settings import Settings
from mmriem.engine.compression import compress_detector
from mmriem.engine.detector import build_detector
from mmriem.engine.detector import init_detector as init_compressed
from mmriem.engine.outputs import Outputs

ROOT = Path(__file__).parents[2]
SIZE = 64
CHEAP = Settings.of(bits=3.0, recalibration=False)


def _make_zoo():
    spec = importlib.util.spec_from_file_location('make_zoo', ROOT / 'tools' / 'maintain' / 'make_zoo.py')
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)  # its dataclass looks there
    spec.loader.exec_module(module)
    return module


make_zoo = _make_zoo()

# narrow forms: every module and every key of the whole detector, a fraction of its weights
RESNET = {'backbone.base_channels': 8, 'neck.in_channels': [32, 64, 128, 256]}
RESNET_18 = {'backbone.base_channels': 8, 'neck.in_channels': [8, 16, 32, 64]}
SWIN = {'backbone.embed_dims': 24, 'backbone.depths': [1, 1, 2, 1], 'neck.in_channels': [24, 48, 96, 192]}
FPN = {'neck.out_channels': 32}
DENSE_HEAD = {'bbox_head.in_channels': 32, 'bbox_head.feat_channels': 32}
GROUPED_HEAD = {**DENSE_HEAD, 'bbox_head.feat_channels': 64}  # norms of 32 groups, on the last level of one pixel
RPN = {'rpn_head.in_channels': 32, 'rpn_head.feat_channels': 32, 'test_cfg.rpn.max_per_img': 20}
BOXES = {'in_channels': 32, 'fc_out_channels': 32}
MASKS = {
    'roi_head.mask_roi_extractor.out_channels': 32,
    **{f'roi_head.mask_head{n}.{key}': 32 for n in ('',) for key in ('in_channels', 'conv_out_channels')},
}
TWO_STAGES = {
    **FPN,
    **RPN,
    'roi_head.bbox_roi_extractor.out_channels': 32,
    **{f'roi_head.bbox_head.{key}': value for key, value in BOXES.items()},
}
CASCADE = {
    **FPN,
    **RPN,
    'roi_head.bbox_roi_extractor.out_channels': 32,
    **{f'roi_head.bbox_head.{stage}.{key}': value for stage in range(3) for key, value in BOXES.items()},
    **MASKS,
}
ONE_LAYER = {'encoder.num_layers': 1, 'decoder.num_layers': 1, 'num_queries': 10}
TWO_LAYERS = {'encoder.num_layers': 1, 'decoder.num_layers': 2, 'num_queries': 10}
DETR_NECK = {'backbone.base_channels': 8}
CSP = {'backbone.widen_factor': 0.125, 'backbone.deepen_factor': 0.167, 'neck.in_channels': [32, 64, 128], **FPN}
NARROW = {
    'faster-rcnn_r50_fpn_1x_coco': {**RESNET, **TWO_STAGES},
    'faster-rcnn_r101_fpn_1x_coco': {**RESNET, **TWO_STAGES},
    'mask-rcnn_r50_fpn_1x_coco': {**RESNET, **TWO_STAGES, **MASKS},
    'mask-rcnn_swin-t-p4-w7_fpn_1x_coco': {**SWIN, **TWO_STAGES, **MASKS},
    'mask-rcnn_swin-s-p4-w7_fpn_amp-ms-crop-3x_coco': {**SWIN, **TWO_STAGES, **MASKS},
    'cascade-mask-rcnn_swin-s-p4-w7_fpn_1x_coco': {**SWIN, **CASCADE},
    'retinanet_swin-t-p4-w7_fpn_1x_coco': {**SWIN, 'neck.in_channels': [48, 96, 192], **FPN, **DENSE_HEAD},
    'retinanet_r18_fpn_1x_coco': {**RESNET_18, **FPN, **DENSE_HEAD},
    'retinanet_r50_fpn_1x_coco': {**RESNET, **FPN, **DENSE_HEAD},
    'fcos_r50-caffe_fpn_gn-head_1x_coco': {**RESNET, **FPN, **GROUPED_HEAD},
    'atss_r50_fpn_1x_coco': {**RESNET, **FPN, **GROUPED_HEAD},
    'detr_r50_8xb2-150e_coco': {**DETR_NECK, 'neck.in_channels': [256], **ONE_LAYER},
    'deformable-detr_r50_16xb2-50e_coco': {**DETR_NECK, 'neck.in_channels': [64, 128, 256], **TWO_LAYERS},
    'dino-4scale_r50_8xb2-12e_coco': {**DETR_NECK, 'neck.in_channels': [64, 128, 256], **TWO_LAYERS},
    'dino-5scale_swin-l_8xb2-12e_coco': {
        'backbone.embed_dims': 48,
        'backbone.depths': [1, 1, 2, 1],
        'neck.in_channels': [48, 96, 192, 384],
        **TWO_LAYERS,
    },
    'rtmdet_tiny_8xb32-300e_coco': {**CSP, **DENSE_HEAD},
    'rtmdet_l_8xb32-300e_coco': {**CSP, 'neck.num_csp_blocks': 1, **DENSE_HEAD},
    'yolox_nano_8xb8-300e_coco': {**CSP, **DENSE_HEAD},
    'yolox_s_8xb8-300e_coco': {**CSP, **DENSE_HEAD},
}
DETECTORS = [pytest.param(detector, id=detector.name) for detector in make_zoo.ZOO]


def narrowed(name: str | Path, detector: Any) -> Config:
    """A config with the options of `NARROW`."""
    config = make_zoo.read_config(name)
    config.merge_from_dict({f'model.{key}': value for key, value in NARROW[detector.name].items()})
    return config


def variant(detector: Any, name: str) -> Path:
    """The path of a config of the zoo."""
    return ROOT / 'configs' / detector.folder / f'{name}.py'


def plain(tree: Any) -> Any:
    """A config without scopes and pretrained weights, which change nothing of a model that is built and loaded."""
    if isinstance(tree, (dict, ConfigDict)):
        return {key: plain(value) for key, value in tree.items() if key not in ('_scope_', 'init_cfg')}
    if isinstance(tree, (list, tuple)):
        return [plain(item) for item in tree]
    return tree


def tensors(tree: Any) -> Iterator[Tensor]:
    """The tensors of nested outputs."""
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, Mapping):
        yield from tensors(list(tree.values()))
    elif isinstance(tree, (list, tuple)):
        for item in tree:
            yield from tensors(item)


@torch.no_grad()
def outputs(model: nn.Module, count: int = 1) -> list[Tensor]:
    """What a detector computes of images: every tensor that its heads return."""
    image = torch.randn(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    shape = dict(img_shape=(SIZE, SIZE), ori_shape=(SIZE, SIZE), batch_input_shape=(SIZE, SIZE), pad_shape=(SIZE, SIZE))
    sample = DetDataSample(metainfo={**shape, 'scale_factor': (1.0, 1.0)})
    return list(tensors(model(image, [sample] * count, mode='tensor')))


def random_weights(model: nn.Module) -> None:
    """As the constructors draw them; then batch norms take the statistics of two images, so that no signal fades."""
    torch.manual_seed(0)
    model.init_weights()
    model.eval()
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    for norm in norms:
        norm.momentum = 1.0
        norm.train()
    outputs(model, count=2)
    model.eval()


def test_every_detector_has_a_narrow_form():
    assert set(NARROW) == {detector.name for detector in make_zoo.ZOO}


def test_files_are_those_that_the_generator_writes():
    files = make_zoo.zoo()
    for name, text in files.items():
        assert (ROOT / name).read_text(encoding='utf-8') == text, f'{name}: run python tools/maintain/make_zoo.py'
    folders = {detector.folder for detector in make_zoo.ZOO}
    found = {str(path.relative_to(ROOT)) for folder in folders for path in (ROOT / 'configs' / folder).iterdir()}
    own = {
        f'configs/{detector.source.removeprefix("configs/")}' for detector in make_zoo.ZOO if '::' not in detector.base
    }
    assert found == {name for name in files if name.startswith('configs/')} | own


def test_index_names_every_config():
    index = yaml.safe_load((ROOT / 'model-index.yml').read_text())
    named = [model for path in index['Import'] for model in yaml.safe_load((ROOT / path).read_text())['Models']]
    assert len(named) == len({model['Name'] for model in named}) == 3 * len(make_zoo.ZOO)
    assert all((ROOT / model['Config']).is_file() for model in named)


@pytest.mark.parametrize('detector', DETECTORS)
def test_drop_in_and_live_compute_the_same(detector, tmp_path):
    """Also that the drop-in configs are the stock one with a reader, a strict hook and the path of their file."""
    names = [*(variant(detector, name) for name in detector.rates), variant(detector, detector.live)]
    stock = narrowed(detector.source if '::' in detector.base else ROOT / detector.source, detector)
    drop_in, other, live = (narrowed(name, detector) for name in names)
    for config, path in zip((drop_in, other), names):
        assert plain(config.model) == plain(stock.model) and config.load_from == f'work_dirs/zoo/{path.stem}.riem'
    for config in (drop_in, other, live):
        assert config.default_hooks.strict_load == dict(type='mmriem.StrictLoadHook')
        assert config.custom_imports.imports == ['mmriem.engine'] and config.default_scope == 'mmdet'
        assert plain(config.test_dataloader) == plain(stock.test_dataloader)
        assert plain(config.test_evaluator) == plain(stock.test_evaluator)

    model = build_detector(drop_in)
    random_weights(model)
    torch.save({'state_dict': model.state_dict(), 'meta': {}}, tmp_path / 'x.pth')
    drop_in.dump(tmp_path / 'narrow.py')
    written = Outputs(tmp_path / 'x.riem')
    compress_detector(str(tmp_path / 'narrow.py'), str(tmp_path / 'x.pth'), written, CHEAP, metric='identity')

    dense, states = (init_detector(deepcopy(config), str(written.riem), device='cpu') for config in (drop_in, live))
    represented = {record.view.name for record in reading.read(written.riem).weights}
    held = {name.replace('.riem.', '.') for name, module in states.named_modules() if isinstance(module, WeightStates)}
    parts = [part for part in ('backbone', 'neck') if 'riem' in live.model.get(part, {})]
    assert held >= {name for name in represented if name.split('.')[0] in parts} and parts[0] == 'backbone'
    compressed = init_compressed(drop_in, written.riem, memory='compressed')
    assert {name for name, _ in compressed.named_parameters()}.isdisjoint(represented)
    expected, original = outputs(dense), outputs(model)
    for found in (outputs(states), outputs(compressed), outputs(compressed)):  # the second run knows what comes next
        assert len(found) == len(expected) > 0
        for ours, theirs in zip(found, expected):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    assert any(not torch.equal(x, y) for x, y in zip(expected, original)), 'the file has the weights of the checkpoint'
