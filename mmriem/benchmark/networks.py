"""The networks of a benchmark: how each is built, loaded and evaluated."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from mmriem.classification import normalised, read_images, resnet20, resnet56, top1
from mmriem.core.errors import RiemError
from mmriem.core.images.probe import MAX_BATCH, ImageProbe, Probe, training_images
from mmriem.core.images.procedural import Style, procedural_images
from mmriem.core.images.style_search import choose_style, few_images

__all__ = ['Classifier', 'Detector', 'Network', 'build_network']

ARCHITECTURES = {'resnet20': resnet20, 'resnet56': resnet56}
IMAGE_SIZE = (32, 32)
PROBE_IMAGES = 256


class Network(ABC):
    """A trained network and its test set.

    Attributes:
        name: what the table calls it.
        checkpoint: the file of its weights.
    """

    name: str
    checkpoint: str

    @abstractmethod
    def build(self) -> nn.Module:
        """The network on the CPU in eval mode, with fresh weights."""

    @abstractmethod
    def accuracy(self, state_dict: Mapping[str, Tensor]) -> float:
        """Percent of its measure on the test set, with these weights."""

    def original(self) -> nn.Module:
        """The network with the weights of the checkpoint.

        Raises:
            RiemError: the checkpoint cannot be read, or does not fit.
        """
        from mmriem.engine.checkpoint import load_into, read_checkpoint

        model = self.build()
        load_into(model, read_checkpoint(self.checkpoint).state_dict, self.checkpoint)
        return model

    @abstractmethod
    def probe(self) -> Probe:
        """The procedural images on which methods measure and norms are recalibrated."""


@dataclass(frozen=True)
class Classifier(Network):
    """A classifier of `ARCHITECTURES`; `images` is an `.npz` file, see `mmriem.classification.read_images`."""

    name: str
    architecture: str
    checkpoint: str
    images: str

    def __post_init__(self) -> None:
        if self.architecture not in ARCHITECTURES:
            raise RiemError(
                f'network {self.name!r}: expected an architecture among {", ".join(ARCHITECTURES)}, '
                f'found {self.architecture!r}; correct the config'
            )

    def build(self) -> nn.Module:
        """See `Network`."""
        return ARCHITECTURES[self.architecture]().eval()

    def accuracy(self, state_dict: Mapping[str, Tensor]) -> float:
        """Top-1."""
        model = self.build()
        model.load_state_dict(state_dict)
        return top1(model, read_images(self.images))

    def probe(self) -> Probe:
        """See `Network`."""
        few = few_images(*IMAGE_SIZE)
        return _leaves(choose_style(self.original(), lambda style: _leaves(style, few)))


def _leaves(style: Style, count: int = PROBE_IMAGES, seed: int = 0, batch: int = MAX_BATCH) -> Probe:
    said = {'kind': 'procedural', 'seed': seed, 'count': count, 'size': IMAGE_SIZE, 'style': style.describe()}
    images = procedural_images(count, *IMAGE_SIZE, seed, style)

    def others(steps: int) -> Probe:
        count, batch = training_images(*IMAGE_SIZE, steps)
        return _leaves(style, count, seed + 1, batch)

    return ImageProbe(normalised(images.permute(0, 2, 3, 1)), batch, said, others)


@dataclass(frozen=True)
class Detector(Network):
    """A detector of mmdet.

    Attributes:
        config: of mmdet.
        metric: of its evaluator, between 0 and 1.
        data_root: see `mmriem.engine.config.with_data_root`.
        logs: folder for the logs of evaluations; it must outlast them, MMEngine's visualizer keeps the first one.
    """

    name: str
    config: str
    checkpoint: str
    metric: str = 'coco/bbox_mAP'
    data_root: str | None = None
    logs: str = 'work_dirs/benchmark/logs'

    def build(self) -> nn.Module:
        """See `Network`."""
        from mmriem.engine.detector import build_detector

        return build_detector(self.parsed_config()).eval()

    def accuracy(self, state_dict: Mapping[str, Tensor]) -> float:
        """100 times `metric`; 0 where nothing is detected at all."""
        from mmriem.engine.evaluation import evaluate

        with TemporaryDirectory() as folder:
            path = Path(folder) / 'decoded.pth'
            torch.save({'state_dict': state_dict}, path)
            return 100 * evaluate(self.parsed_config(), path, self.logs).get(self.metric, 0.0)

    def probe(self) -> Probe:
        """See `Network`."""
        from mmriem.engine.probe import build_probe

        return build_probe(self.parsed_config(), self.original())

    def parsed_config(self) -> Any:
        """The config of mmdet, with data where `data_root` says."""
        from mmengine.config import Config

        from mmriem.engine.config import read_config, with_data_root

        return Config(with_data_root(read_config(self.config).to_dict(), self.data_root))


KINDS = {'classifier': Classifier, 'detector': Detector}


def build_network(entry: Mapping[str, Any]) -> Network:
    """The network of an entry of a config: `type` is `classifier` or `detector`, the rest are its attributes.

    Raises:
        RiemError: there is no such type, an attribute is missing or unknown, or the checkpoint is not there.
    """
    told = dict(entry)
    kind = told.pop('type', None)
    if kind not in KINDS:
        name = told.get('name')
        raise RiemError(f'network {name!r}: expected a type among {", ".join(KINDS)}, found {kind!r}; see the config')
    try:
        network = KINDS[kind](**told)
    except TypeError as error:
        raise RiemError(f'network {told.get("name")!r}: {error}; correct the config') from error
    if not os.path.isfile(network.checkpoint):
        raise RiemError(f'{network.checkpoint}: no such checkpoint of network {network.name!r}; give --data-root')
    return network
