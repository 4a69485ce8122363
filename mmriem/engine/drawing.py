"""What mmdet's DetInferencer needs of a config to draw, where the config does not say it."""

from __future__ import annotations

from copy import deepcopy

from mmengine.config import Config

__all__ = ['with_visualizer']

VISUALIZER = dict(type='DetLocalVisualizer', vis_backends=[dict(type='LocalVisBackend')], name='visualizer')


def with_visualizer(config: Config) -> Config:
    """The config of a detector with a visualizer, mmdet's default one where it has none; else the same config.

    DetInferencer is not even built without one.
    """
    if config.get('default_scope', 'mmdet') != 'mmdet' or config.get('visualizer') is not None:
        return config
    config = deepcopy(config)
    config.visualizer = deepcopy(VISUALIZER)
    return config
