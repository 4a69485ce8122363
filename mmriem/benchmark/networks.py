"""The networks of a benchmark: how each is built, loaded and evaluated."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from mmriem.classification import efficientnet_lite0, read_image_folder, read_images, resnet20, resnet56, top1
from mmriem.core.errors import RiemError
from mmriem.core.execution.executor import Executor
from mmriem.core.execution.journal import Journal
from mmriem.core.images.probe import Probe
from mmriem.image_probe import InputFormat, made_probe

__all__ = ['Classifier', 'Detector', 'Network', 'build_network']

LITE_MEAN, LITE_STD = 127 / 255, 128 / 255


@dataclass(frozen=True)
class Architecture:
    """A classifier that a config can name.

    Attributes:
        build: with fresh weights.
        size: of its images: channels, height, width.
        mean, std: of their values, 0 to 1, for each channel; None: ImageNet's.
        batch: images of an evaluation that run at a time.
    """

    build: Callable[[], nn.Module]
    size: tuple[int, int, int] = (3, 32, 32)
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    batch: int = 500


ARCHITECTURES = {
    'resnet20': Architecture(resnet20),
    'resnet56': Architecture(resnet56),
    'efficientnet_lite0': Architecture(efficientnet_lite0, (3, 224, 224), (LITE_MEAN,) * 3, (LITE_STD,) * 3, batch=8),
}


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
    def probe(self, synthesis: int | None = None, journal: Journal | None = None) -> Probe:
        """The images on which methods measure and norms are recalibrated.

        Args:
            synthesis: steps that procedural images are optimised by; 0: none; None: by default.
            journal: keeps them, and has them where they were made before.
        """


@dataclass(frozen=True)
class Classifier(Network):
    """A classifier of `ARCHITECTURES`.

    Attributes:
        images: an `.npz` file, see `mmriem.classification.read_images`, or a folder with one of images for each class.
    """

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
        return ARCHITECTURES[self.architecture].build().eval()

    def accuracy(self, state_dict: Mapping[str, Tensor]) -> float:
        """Top-1."""
        model = self.build()
        model.load_state_dict(state_dict)
        its = ARCHITECTURES[self.architecture]
        is_folder = os.path.isdir(self.images)
        data = read_image_folder(self.images, its.size[1]) if is_folder else read_images(self.images)
        return top1(model, data, its.batch, self._format.normalised)

    def probe(self, synthesis: int | None = None, journal: Journal | None = None) -> Probe:
        """See `Network`."""
        executor = Executor(torch.get_num_threads(), journal=journal)
        return made_probe(self.original(), self._format, synthesis, executor=executor)

    @property
    def _format(self) -> InputFormat:
        its = ARCHITECTURES[self.architecture]
        return InputFormat.told(its.size, its.mean, its.std)


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

    def probe(self, synthesis: int | None = None, journal: Journal | None = None) -> Probe:
        """See `Network`."""
        from mmriem.engine.probe import build_probe

        model, executor = self.original(), Executor(torch.get_num_threads(), journal=journal)
        probe = build_probe(self.parsed_config(), model, executor=executor, synthesis=synthesis)
        probe.synthesise(model, executor, 'cpu')
        return probe

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
