"""How much errors of what the heads of a detector say count, for what detection is judged by: scores and boxes.

Average precision knows the detections with high scores, and of most places that their scores are low. An error of a
class logit changes its score ``s`` by ``s (1 - p)`` of it, ``p`` being its probability and ``s`` that times the one of
the objectness or quality beside it; an error of a box matters as much as its score. So these are the weights of errors,
above a floor, and classes, boxes, quality and masks of a head are parts of equal weight. Heads are told apart by what
they return; of one that is not known nothing is known but its outputs, all of which count alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mmriem.core.images.probe import Output, float_tensors

__all__ = ['head_outputs', 'unknown_heads']

FLOOR = 1e-3
"""What is added to the weight of each output, the largest of which is about 1."""

_Kinds = dict[str, list[tuple[Tensor, Tensor]]]
"""For each kind of output, its values and weights of the same shape."""


def head_outputs(said: Sequence[tuple[nn.Module, Any]]) -> list[Output]:
    """What heads said, each with what it returned, as outputs; those alone that depend on a weight."""
    kinds = [part for head, returned in said for part in _kinds(head, returned)]
    merged = [
        (
            torch.cat([values.reshape(-1) for values, _ in parts]),
            torch.cat([weights.reshape(-1) for _, weights in parts]).detach() + FLOOR,
            share,
        )
        for parts, share in kinds
    ]
    return [Output(values, weights, share * len(said)) for values, weights, share in merged]


def unknown_heads(said: Sequence[tuple[nn.Module, Any]]) -> list[str]:
    """The classes of those heads that are of none of the families whose outputs are told apart."""
    return sorted({type(head).__name__ for head, returned in said if _known(head, returned) is None})


def _kinds(head: nn.Module, returned: Any) -> list[tuple[list[tuple[Tensor, Tensor]], int]]:
    """Of each kind of output of a head values and weights, and how many kinds there are."""
    known = _known(head, returned)
    if known is None:
        plain = [values for values in float_tensors(returned) if values.requires_grad]
        return [([(values, torch.ones_like(values))], len(plain)) for values in plain]
    kinds = [[pair for pair in pairs if pair[0].requires_grad and pair[0].numel()] for pairs in known.values()]
    kinds = [pairs for pairs in kinds if pairs]
    return [(pairs, len(kinds)) for pairs in kinds]


@torch.no_grad()
def _known(head: nn.Module, returned: Any) -> _Kinds | None:
    for family in (_dense, _queries, _regions, _masks):
        found = family(head, returned)
        if found is not None:
            return found
    return None


def _dense(head: nn.Module, returned: Any) -> _Kinds | None:
    """Lists over levels of ``(n, anchors * classes, h, w)``, of boxes, and of what is one number for an anchor."""
    classes = getattr(head, 'cls_out_channels', 0)
    lists = [level for level in returned if _is_maps(level)] if isinstance(returned, (list, tuple)) else []
    if not classes or len(lists) < 2 or any(len(level) != len(lists[0]) for level in lists):
        return None
    found: _Kinds = {}
    for logits, boxes, *others in zip(*lists):
        anchors = logits.shape[1] // classes
        if anchors * classes != logits.shape[1] or boxes.shape[1] % anchors or _are_probabilities(logits):
            return None
        split = logits.unflatten(1, (anchors, classes))
        quality = next((other for other in others if other.shape == (len(logits), anchors, *logits.shape[2:])), None)
        known = torch.ones_like(split[:, :, 0]) if quality is None else quality.sigmoid()
        weights, score = _weights_of_logits(split.movedim(2, -1), known, _has_sigmoid(head))
        found.setdefault('classes', []).append((logits, weights.movedim(-1, 2).flatten(1, 2)))
        for other in (boxes, *others):
            if quality is not None and other is quality:
                found.setdefault('quality', []).append((other, score * (1 - known)))
            elif other.shape[2:] == score.shape[2:] and other.shape[1] % anchors == 0:
                of_each = score.repeat_interleave(other.shape[1] // anchors, 1)
                found.setdefault('boxes', []).append((other, of_each))
    return found


def _queries(head: nn.Module, returned: Any) -> _Kinds | None:
    """``(layers, n, queries, classes)`` and ``(layers, n, queries, 4)``: the last layer is what counts."""
    if not isinstance(returned, (list, tuple)) or len(returned) < 2:
        return None
    logits, boxes = returned[:2]
    if not all(isinstance(one, Tensor) and one.dim() == 4 for one in (logits, boxes)) or boxes.shape[3] != 4:
        return None
    if logits.shape[:3] != boxes.shape[:3] or logits.shape[3] != getattr(head, 'cls_out_channels', 0):
        return None
    with torch.enable_grad():
        logits, boxes = logits[-1], boxes[-1]
    weights, score = _weights_of_logits(logits, torch.ones_like(logits[..., 0]), _has_sigmoid(head))
    return {'classes': [(logits, weights)], 'boxes': [(boxes, score[..., None].expand_as(boxes))]}


def _regions(head: nn.Module, returned: Any) -> _Kinds | None:
    """``(boxes, classes + 1)`` and ``(boxes, 4)`` or ``(boxes, 4 * classes)``: of a second stage."""
    classes = getattr(head, 'num_classes', 0)
    if not isinstance(returned, (list, tuple)) or len(returned) != 2 or not isinstance(returned[0], Tensor):
        return None
    logits, boxes = returned
    if not classes or logits.shape[1:] != (classes + 1,):
        return None
    weights, score = _weights_of_logits(logits, torch.ones_like(logits[:, 0]), False)
    found = {'classes': [(logits, weights)]}
    if isinstance(boxes, Tensor):
        if boxes.shape[1] == 4 * classes:
            of_each = logits.softmax(1)[:, :-1].repeat_interleave(4, 1)
        else:
            of_each = score[:, None].expand_as(boxes)
        found['boxes'] = [(boxes, of_each)]
    return found


def _masks(head: nn.Module, returned: Any) -> _Kinds | None:
    """``(boxes, classes, h, w)``, logits: their edges count."""
    is_masks = isinstance(returned, Tensor) and returned.dim() == 4 and hasattr(head, 'loss_mask')
    if not is_masks:
        return None
    inside = returned.sigmoid()
    return {'masks': [(returned, inside * (1 - inside))]}


def _weights_of_logits(logits: Tensor, quality: Tensor, is_sigmoid: bool) -> tuple[Tensor, Tensor]:
    """Of logits ``(..., classes)``, for softmax with the background last, and the score ``(...)`` of the best class."""
    if is_sigmoid:
        found = logits.sigmoid()
        scores = found * quality[..., None]
        return scores * (1 - found), scores.amax(-1)
    found = logits.softmax(-1)
    scores = found * quality[..., None]
    best = scores[..., :-1].amax(-1)
    of_background = best[..., None] * found[..., -1:]
    return torch.cat([(scores * (1 - found))[..., :-1], of_background], -1), best


def _has_sigmoid(head: nn.Module) -> bool:
    return bool(getattr(head, 'use_sigmoid_cls', getattr(getattr(head, 'loss_cls', None), 'use_sigmoid', False)))


def _are_probabilities(logits: Tensor) -> bool:
    return bool(logits.min() >= 0 and logits.max() <= 1)


def _is_maps(level: Any) -> bool:
    return (
        isinstance(level, (list, tuple)) and bool(level) and all(isinstance(x, Tensor) and x.dim() == 4 for x in level)
    )
