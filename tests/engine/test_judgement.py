"""Errors of what heads say count as detection is judged: by the score that they change."""

import pytest
import torch
from torch import nn

from mmriem.core.images.probe import Output
from mmriem.core.metric import pullback
from mmriem.engine.judgement import FLOOR, head_outputs, unknown_heads


def head(**attributes):
    made = nn.Module()
    for name, value in attributes.items():
        setattr(made, name, value)
    return made


def leaf(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).mul(3).requires_grad_(True)


def by_autograd(score, logits):
    """How much a change of each logit changes its own score, where that depends on it alone."""
    return torch.autograd.grad(score.sum(), logits, retain_graph=True)[0]


def test_logits_of_a_dense_head_count_by_what_they_do_to_their_score():
    logits, boxes = [leaf(2, 6, 3, 4), leaf(2, 6, 2, 2, seed=1)], [leaf(2, 8, 3, 4), leaf(2, 8, 2, 2)]
    classes, of_boxes = head_outputs([(head(cls_out_channels=3, use_sigmoid_cls=True), (logits, boxes))])
    expected = torch.cat([by_autograd(level.sigmoid(), level).reshape(-1) for level in logits])
    assert torch.allclose(classes.weights, expected + FLOOR) and (classes.parts, of_boxes.parts) == (2, 2)
    assert torch.equal(classes.values, torch.cat([level.reshape(-1) for level in logits]))
    best = [level.sigmoid().unflatten(1, (2, 3)).amax(2).repeat_interleave(4, 1).reshape(-1) for level in logits]
    assert torch.allclose(of_boxes.weights, torch.cat(best) + FLOOR)


def test_objectness_counts_and_is_a_part_of_its_own():
    logits, boxes, quality = leaf(1, 5, 3, 3), leaf(1, 4, 3, 3), leaf(1, 1, 3, 3, seed=2)
    found = head_outputs([(head(cls_out_channels=5, use_sigmoid_cls=True), ([logits], [boxes], [quality]))])
    score = logits.sigmoid() * quality.sigmoid()
    assert [output.parts for output in found] == [3, 3, 3]
    sizes = {output.values.numel(): output for output in found}
    classes, of_quality = sizes[45], sizes[9]
    assert torch.allclose(classes.weights, by_autograd(score, logits).reshape(-1) + FLOOR)
    best = score.amax(1, keepdim=True)
    assert torch.allclose(of_quality.weights, by_autograd(best, quality).reshape(-1) + FLOOR)


def test_the_background_counts_by_the_score_that_it_takes():
    logits, boxes = leaf(6, 4), leaf(6, 12)
    classes, of_boxes = head_outputs([(head(num_classes=3), (logits, boxes))])
    scores = logits.softmax(1)
    expected = scores * (1 - scores)
    expected[:, 3] = scores[:, :3].amax(1) * scores[:, 3]
    assert torch.allclose(classes.weights.view(6, 4), expected + FLOOR)
    assert torch.allclose(of_boxes.weights.view(6, 3, 4), scores[:, :3, None].expand(6, 3, 4) + FLOOR)


def test_one_box_for_all_classes_counts_by_the_best_score():
    logits, boxes = leaf(6, 4), leaf(6, 4)
    of_boxes = head_outputs([(head(num_classes=3), (logits, boxes))])[1]
    assert torch.allclose(of_boxes.weights.view(6, 4), logits.softmax(1)[:, :3].amax(1, keepdim=True) + FLOOR)


def test_of_queries_the_last_layer_counts():
    logits, boxes = leaf(3, 2, 7, 5), leaf(3, 2, 7, 4)
    known = head(cls_out_channels=5, loss_cls=head(use_sigmoid=True))
    classes, of_boxes = head_outputs([(known, (logits, boxes))])
    assert torch.equal(classes.values, logits[-1].reshape(-1)) and torch.equal(of_boxes.values, boxes[-1].reshape(-1))
    assert torch.allclose(classes.weights, by_autograd(logits.sigmoid(), logits)[-1].reshape(-1) + FLOOR)


def test_masks_count_at_their_edges():
    logits = leaf(2, 3, 4, 4)
    (masks,) = head_outputs([(head(num_classes=3, loss_mask=None), logits)])
    assert torch.allclose(masks.weights, by_autograd(logits.sigmoid(), logits).reshape(-1) + FLOOR)


@pytest.mark.parametrize(
    ('attributes', 'returned'),
    [
        ({}, (leaf(2, 3, 4), leaf(2, 4))),
        (dict(cls_out_channels=3), ([leaf(1, 3, 2, 2).sigmoid()], [leaf(1, 4, 2, 2)])),  # scores already
        (dict(cls_out_channels=3), ([leaf(1, 4, 2, 2)], [leaf(1, 4, 2, 2)])),
        (dict(num_classes=3), (leaf(2, 3), leaf(2, 4))),
        (dict(num_classes=3), leaf(2, 3, 4, 4)),
    ],
)
def test_of_other_heads_all_outputs_count_alike_and_they_are_named(attributes, returned):
    said = [(head(**attributes), returned), (head(num_classes=3), (leaf(6, 4), leaf(6, 4)))]
    found = head_outputs(said)
    assert unknown_heads(said) == ['Module'] and unknown_heads(said[1:]) == []
    others = found[:-2]
    assert all((output.weights == 1 + FLOOR).all() and output.parts == 2 * len(others) for output in others)


def test_weights_weigh_the_projection_of_the_metric():
    values, weights = leaf(4, 3), torch.rand(4, 3) + 0.1
    projection = pullback._random_projection([Output(values, weights, 1)], (0, 4), 0)
    gradient = torch.autograd.grad(projection, values)[0]
    mean = (weights.square() * values).sum() / weights.square().sum()
    spread = (weights * (values - mean)).square().mean()
    assert torch.allclose(gradient.square(), 4 / 12 * weights.square() / spread)
