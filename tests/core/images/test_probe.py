"""Images in batches."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mmriem.core.images.probe import ImageProbe


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
