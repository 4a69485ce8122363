"""Accuracy of classifiers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from mmengine.evaluator import BaseMetric
from torch import Tensor

from mmriem.core.errors import RiemError
from mmriem.registry import METRICS

__all__ = ['Accuracy', 'rank_of_label']


@METRICS.register_module()
class Accuracy(BaseMetric):
    """Percent of the images whose label is among the best `k` classes: `accuracy/top1`, `accuracy/top5`.

    It takes data samples with `pred_score` `(classes,)` and `gt_label` `(1,)`, as mmpretrain's classifiers give them.

    Args:
        topk: the `k`, at least 1 each.
        collect_device, prefix: see `mmengine.evaluator.BaseMetric`.
    """

    default_prefix = 'accuracy'

    def __init__(self, topk: Sequence[int] = (1, 5), collect_device: str = 'cpu', prefix: str | None = None) -> None:
        super().__init__(collect_device, prefix)
        if not topk or min(topk) < 1:
            raise RiemError(f'topk: expected numbers of at least 1, found {topk}')
        self.topk = tuple(topk)

    def process(self, data_batch: Any, data_samples: Sequence[Mapping[str, Any]]) -> None:
        """Keep where each label stands."""
        for sample in data_samples:
            self.results.append(rank_of_label(sample['pred_score'], int(sample['gt_label'])))

    def compute_metrics(self, results: list[int]) -> dict[str, float]:
        """Of the whole set."""
        ranks = np.asarray(results)
        return {f'top{k}': 100 * float((ranks < k).mean()) for k in self.topk}


def rank_of_label(scores: Tensor, label: int) -> int:
    """How many classes come before that of the label: those with a better score, or with the same and a lower number.

    NaN counts as better than anything, so a network that returns it is never right.

    >>> import torch
    >>> [rank_of_label(torch.tensor([0.2, 0.5, 0.2, 0.1]), label) for label in range(4)]
    [1, 0, 2, 3]

    Raises:
        RiemError: there is no such class.
    """
    if not 0 <= label < len(scores):
        raise RiemError(f'label {label}: expected one of the {len(scores)} classes of the network; check the data set')
    own = scores[label]
    before = ~(scores[:label] < own)
    after = ~(scores[label + 1 :] <= own)
    return int(before.sum() + after.sum())
