"""Images in batches, and what runs on them."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from mmriem.core.images.probe import ImageProbe, frozen_copy


def batches_of(images, batch):
    return ImageProbe(torch.zeros(images, 1), batch).batches()


@given(st.integers(1, 300), st.integers(1, 40))
def test_batches_are_all_images_in_their_order_and_nearly_equal(images, batch):
    batches = batches_of(images, batch)
    assert [number for first, last in batches for number in range(first, last)] == list(range(images))
    sizes = [last - first for first, last in batches]
    assert max(sizes) <= batch and max(sizes) - min(sizes) <= 1
    assert len(batches) - -(-images // batch) in (0, 1)


@pytest.mark.parametrize(
    ('images', 'batch', 'count'), [(64, 10, 8), (7, 8, 1), (8, 8, 1), (9, 8, 2), (3, 1, 3), (5, 2, 4)]
)
def test_two_processes_have_as_many_batches_each(images, batch, count):
    assert len(batches_of(images, batch)) == count


def test_a_frozen_copy_predicts_and_leaves_the_network_alone():
    net = nn.Sequential(nn.Linear(2, 2), nn.Dropout())
    net[1].with_cp = True
    own = frozen_copy(net)
    assert not (own.training or own[1].with_cp or any(weight.requires_grad for weight in own.parameters()))
    assert net.training and net[1].with_cp and all(weight.requires_grad for weight in net.parameters())
