"""A detector small enough to train in a test, and the data for it."""

import json
import os
import runpy
import socket
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
collect_ignore = ['core/execution/killed.py', 'engine/talking.py']  # programs that tests start

CONFIG = """
default_scope = 'mmdet'
data_root = {data_root!r}
metainfo = dict(classes=('square', 'bar'), palette=[(220, 20, 60), (20, 60, 220)])
model = dict(
    type='RetinaNet',
    data_preprocessor=dict(
        type='DetDataPreprocessor', mean=[100.0, 110.0, 120.0], std=[50.0, 50.0, 50.0], pad_size_divisor=32
    ),
    backbone=dict(type='ResNet', depth=18, base_channels=8, out_indices=(0, 1, 2, 3), norm_eval=False),
    neck=dict(type='FPN', in_channels=[8, 16, 32, 64], out_channels=8, start_level=1, num_outs=3),
    bbox_head=dict(
        type='RetinaHead',
        num_classes=2,
        in_channels=8,
        stacked_convs=1,
        feat_channels=8,
        anchor_generator=dict(
            type='AnchorGenerator',
            octave_base_scale=4,
            scales_per_octave=1,
            ratios=[1.0],
            strides=[8, 16, 32],
        ),
        bbox_coder=dict(type='DeltaXYWHBBoxCoder'),
        loss_cls=dict(type='FocalLoss', use_sigmoid=True),
        loss_bbox=dict(type='L1Loss'),
    ),
    train_cfg=dict(
        assigner=dict(
            type='MaxIoUAssigner', pos_iou_thr=0.5, neg_iou_thr=0.4, min_pos_iou=0, ignore_iof_thr=-1
        ),
        sampler=dict(type='PseudoSampler'),
        allowed_border=-1,
        pos_weight=-1,
    ),
    test_cfg=dict(
        nms_pre=100,
        min_bbox_size=0,
        score_thr=0.0,
        nms=dict(type='nms', iou_threshold=0.5),
        max_per_img=20,
    ),
)
packed = ('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')
pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='Resize', scale=(64, 64), keep_ratio=True),
    dict(type='PackDetInputs', meta_keys=packed),
]
dataset = dict(
    type='CocoDataset', data_root=data_root, ann_file='annotations.json', data_prefix=dict(img='images/'),
    metainfo=metainfo, pipeline=pipeline,
)
train_dataloader = dict(
    batch_size=2, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False), dataset=dataset
)
test_dataloader = dict(
    batch_size=1, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(test_mode=True, **dataset),
)
test_evaluator = dict(type='CocoMetric', ann_file=data_root + '/annotations.json', metric='bbox')
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=1)
test_cfg = dict(type='TestLoop')
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='Adam', lr=0.003))
param_scheduler = [dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=10)]
default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=1),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(type='CheckpointHook', interval=1),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    visualization=dict(type='DetVisualizationHook'),
)
vis_backends = [dict(type='LocalVisBackend')]
visualizer = dict(type='DetLocalVisualizer', vis_backends=vis_backends, name='visualizer')
env_cfg = dict(cudnn_benchmark=False, mp_cfg=dict(mp_start_method='fork'), dist_cfg=dict(backend='gloo'))
randomness = dict(seed=3)
log_level = 'INFO'
"""

BENCHMARK = """
networks = [
    dict(
        name='small', type='classifier', architecture='resnet20', checkpoint='../shared/data/net.pth',
        images='../shared/data/test.npz', settings=dict(rounding=[dict(bits=4)]),
    ),
    dict(name='again', type='classifier', architecture='resnet20', checkpoint='../shared/data/net.pth',
         images='../shared/data/test.npz'),
]
methods = [
    dict(type='fp16', settings=[dict()]),
    dict(type='rounding', settings=[dict(bits=2), dict(bits=8)]),
    dict(name='low rank', type='mmriem', settings=[
        dict(representation='bilinear', ratio=0.3), dict(representation='bilinear', ratio=0.001),
    ]),
]
"""


@pytest.fixture(scope='session')
def coco_data(tmp_path_factory) -> Path:
    """A folder with `annotations.json` and three images, two boxes each."""
    root = tmp_path_factory.mktemp('coco')
    (root / 'images').mkdir()
    rng = np.random.default_rng(0)
    images, boxes = [], []
    for index in range(3):
        image = rng.integers(0, 80, (64, 64, 3), dtype=np.uint8)
        for category, (x, y, w, h) in enumerate([(4 + 6 * index, 8, 20, 20), (30, 36, 24, 12 + 2 * index)], start=1):
            image[y : y + h, x : x + w] = (250, 120 * category, 0)
            boxes.append(
                dict(
                    id=len(boxes) + 1,
                    image_id=index,
                    category_id=category,
                    bbox=[x, y, w, h],
                    area=w * h,
                    iscrowd=0,
                )
            )
        cv2.imwrite(str(root / 'images' / f'{index}.png'), image)
        images.append(dict(id=index, file_name=f'{index}.png', width=64, height=64))
    categories = [dict(id=1, name='square'), dict(id=2, name='bar')]
    (root / 'annotations.json').write_text(json.dumps(dict(images=images, annotations=boxes, categories=categories)))
    return root


@pytest.fixture(scope='session')
def tiny_config(coco_data, tmp_path_factory) -> Path:
    """The config of a RetinaNet with an eight-channel ResNet-18 on `coco_data`."""
    path = tmp_path_factory.mktemp('config') / 'tiny.py'
    path.write_text(CONFIG.format(data_root=str(coco_data)))
    return path


@pytest.fixture(scope='session')
def runner_checkpoint(tiny_config, tmp_path_factory) -> Path:
    """What MMEngine's Runner saves after training `tiny_config`: weights, optimizer, message hub."""
    from mmengine.config import Config
    from mmengine.runner import Runner

    work_dir = tmp_path_factory.mktemp('trained')
    config = Config.fromfile(tiny_config)
    config.merge_from_dict(
        {
            'work_dir': str(work_dir),
            'experiment_name': 'runner_checkpoint',
            'train_cfg.max_epochs': 30,
            'default_hooks.checkpoint.interval': 30,
            'log_level': 'WARNING',
        }
    )
    Runner.from_cfg(config).train()
    return work_dir / 'epoch_30.pth'


@pytest.fixture(scope='session')
def riem_file(tiny_config, runner_checkpoint, tmp_path_factory) -> Path:
    """`runner_checkpoint` with the weights of the backbone as low-rank states."""
    from mmengine.config import Config

    from mmriem.core.file import writing
    from mmriem.core.file.archive import Archive, WeightRecord
    from mmriem.core.file.manifest import Source
    from mmriem.core.representations.bilinear.fitter import BilinearFitter
    from mmriem.core.weights.views import find_weights
    from mmriem.engine import read_checkpoint
    from mmriem.engine.detector import build_detector

    checkpoint = read_checkpoint(runner_checkpoint)
    views = find_weights(build_detector(Config.fromfile(tiny_config)), include=['backbone.*'], min_numel=512)
    weights, fitter = [], BilinearFitter()
    for view in views:
        matrix = view.to_matrix(checkpoint.state_dict[view.name])
        fitted = fitter.fit(matrix, fitter.configure(tuple(matrix.shape), 5 * matrix.numel()))
        weights.append(WeightRecord(view, fitted))
    archive = Archive.from_state_dict(
        checkpoint.state_dict,
        weights,
        dataset_meta=checkpoint.dataset_meta,
        source=Source(checkpoint.path.name, checkpoint.sha256),
        settings={},
    )
    path = tmp_path_factory.mktemp('riem') / 'tiny.riem'
    writing.write(path, archive)
    return path


@pytest.fixture(scope='session')
def classifier_data(tmp_path_factory):
    """A folder with `net.pth` and `test.npz`."""
    import torch

    from mmriem.classification import resnet20

    root = tmp_path_factory.mktemp('data')
    torch.manual_seed(0)
    torch.save(resnet20().state_dict(), root / 'net.pth')
    rng = np.random.default_rng(0)
    np.savez(root / 'test.npz', X=rng.integers(0, 256, (20, 32, 32, 3), np.uint8), Y=rng.integers(0, 10, 20))
    return root


@pytest.fixture
def benchmark_config(tmp_path):
    """A config that benchmarks a classifier of `classifier_data`, in `tmp_path`."""
    (tmp_path / 'bench.py').write_text(BENCHMARK)
    return tmp_path / 'bench.py'


@pytest.fixture
def port() -> str:
    """A port of this machine that is free."""
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        return str(probe.getsockname()[1])


@pytest.fixture(scope='session')
def call():
    """Run a Python program of the project, or a shell script, as a user does; gives the finished process."""

    def run(program, *arguments, cwd=None, **environment):
        command = [sys.executable, program] if str(program).endswith('.py') else ['bash', program]
        path = f'{Path(sys.executable).parent}{os.pathsep}{os.environ["PATH"]}'
        return subprocess.run(
            [*map(str, command), *map(str, arguments)],
            cwd=cwd,
            env={**os.environ, 'PATH': path, 'OMP_NUM_THREADS': '1', **environment},
            capture_output=True,
            text=True,
            timeout=600,
        )

    return run


@pytest.fixture
def call_here(monkeypatch, tmp_path):
    """Run a tool in this process, in `tmp_path`; gives what it hands to `sys.exit`, else None."""
    from mmengine.runner import CheckpointLoader

    import mmriem.engine  # noqa: F401  (its scheme must outlast the test, which restores the schemes)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('LOCAL_RANK', '0')
    monkeypatch.setattr(CheckpointLoader, '_schemes', CheckpointLoader._schemes.copy())

    def run(program, *arguments):
        monkeypatch.setattr(sys, 'argv', [*map(str, [program, *arguments])])
        try:
            runpy.run_path(str(program), run_name='__main__')
        except SystemExit as end:
            return end.code

    return run


@pytest.fixture(scope='session')
def tools() -> Path:
    """The folder of the command line tools."""
    return ROOT / 'tools'
