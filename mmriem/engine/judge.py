"""What is measured of a file beside its predicted error: agreement with the original, and the config's metrics."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from mmengine.config import Config
from torch import nn

from mmriem.core.errors import RiemError
from mmriem.core.execution.executor import Executor
from mmriem.core.file.archive import Archive

from .agreement import Reference, in_words
from .evaluation import evaluate
from .outputs import Outputs
from .probe import build_probe
from .worst_images import worst_images

__all__ = ['IMAGES', 'Checks', 'Judge', 'main_metric']

IMAGES = 64
"""Most images for the agreement, where no number is given."""
DRAWN = 4
"""Images of a report that are drawn side by side."""
MAIN = ('bbox_mAP', 'segm_mAP', 'top1')
"""Ends of the names of metrics that go first."""


@dataclass(frozen=True)
class Checks:
    """What is asked for.

    Attributes:
        agree: run the original and the compressed model on images without labels.
        images: a folder of them; None: procedural ones, others than those of the compression.
        evaluate: run the test of the config before and after.
    """

    agree: bool = False
    images: str | os.PathLike | None = None
    evaluate: bool = False


class Judge:
    """Measures files of one original; what the original says is measured once, at the start.

    Args:
        checks: what is asked for.
        config: of the original.
        checkpoint: its file.
        model: the original, with its weights.
        outputs: beside which the logs of evaluations are.
        seed: of the images of the compression.
        executor: who works.

    Raises:
        RiemError: the config has no test, the original cannot be evaluated, or it cannot be run on the images.
    """

    def __init__(
        self,
        checks: Checks,
        config: Config,
        checkpoint: str,
        model: nn.Module,
        outputs: Outputs,
        seed: int,
        executor: Executor,
    ) -> None:
        self._config, self._before = config, None
        self._logs = outputs.riem.with_name(f'{outputs.riem.stem}-evaluation')
        self._reference = None
        if checks.evaluate:
            absent = [key for key in ('test_dataloader', 'test_cfg', 'test_evaluator') if config.get(key) is None]
            if absent:
                raise RiemError(f'--eval: expected {", ".join(absent)} in the config, found none; leave it out')
            self._before = evaluate(config, checkpoint, self._logs)
        if checks.agree:
            original = copy.deepcopy(model)
            original.eval()
            probe = build_probe(config, original, IMAGES, seed + 1, checks.images, executor)
            self._reference = Reference(original, probe)

    def judge(self, archive: Archive, path: str | os.PathLike) -> tuple[dict[str, Any], list[tuple[str, np.ndarray]]]:
        """What the report says of a file, and pictures of the images with the least agreement.

        Args:
            archive: what was compressed.
            path: of the file that it was written to.
        """
        told: dict[str, Any] = {}
        pictures: list[tuple[str, np.ndarray]] = []
        if self._reference is not None:
            compressed = copy.deepcopy(self._reference.model)
            compressed.load_state_dict(archive.decode())
            agreement = self._reference.agree(compressed)
            told['agreement'] = {**agreement.figures, 'said': in_words(agreement.figures)}
            pictures = worst_images(agreement, self._reference.model, self._reference.probe, DRAWN)
        if self._before is not None:
            told['evaluation'] = {'before': self._before, 'after': evaluate(self._config, path, self._logs)}
        return told, pictures


def main_metric(metrics: Mapping[str, Any]) -> str | None:
    """The name of the one that stands for all: box mAP before others; None where there is no number.

    >>> main_metric({'coco/bbox_mAP_50': 0.9, 'coco/bbox_mAP': 0.5, 'seconds': 3.0})
    'coco/bbox_mAP'
    """
    names = [name for name, value in metrics.items() if name != 'seconds' and isinstance(value, (int, float))]
    for end in MAIN:
        for name in names:
            if name.endswith(end):
                return name
    return names[0] if names else None
