"""Top-k accuracy."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mmengine.registry import METRICS

from mmriem.classification.metric import Accuracy, rank_of_label
from mmriem.core.errors import RiemError


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=8), st.data())
def test_the_rank_is_the_place_in_a_stable_sort(scores, data):
    label = data.draw(st.integers(0, len(scores) - 1))
    order = sorted(range(len(scores)), key=lambda index: -scores[index])
    assert rank_of_label(torch.tensor(scores), label) == order.index(label)


def test_percent_of_the_images():
    metric = METRICS.build(dict(type='mmriem.Accuracy', topk=(1, 2, 5)))
    scores = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.2, 0.7], [0.3, 0.4, 0.3], [0.1, 0.3, 0.6]])
    for row, label in zip(scores, [0, 1, 2, 2]):
        metric.process(None, [dict(pred_score=row, gt_label=torch.tensor([label]))])
    assert metric.evaluate(4) == {'accuracy/top1': 50.0, 'accuracy/top2': 75.0, 'accuracy/top5': 100.0}


def test_a_network_that_returns_nan_is_never_right():
    assert [rank_of_label(torch.full((4,), torch.nan), label) for label in range(4)] == [3] * 4
    assert np.isfinite(Accuracy().compute_metrics([3, 3])['top1'])


def test_unfit_values():
    with pytest.raises(RiemError, match='label 3: expected one of the 3 classes'):
        rank_of_label(torch.zeros(3), 3)
    for topk in ((), (0,)):
        with pytest.raises(RiemError, match='topk: expected'):
            Accuracy(topk)
