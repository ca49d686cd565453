"""From the scores of all places to objects: the sure ones, each once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Found", "objects"]

MOST = 300
"""Candidates that are compared with each other; a picture of noise must not take minutes."""


@dataclass(frozen=True, slots=True)
class Found:
    """One object: index of its class, score 0 to 1, box (left, top, right, bottom) in the unit of the places' boxes."""

    label: int
    score: float
    box: tuple[float, float, float, float]


def objects(places: Tensor, threshold: float, overlap: float = 0.5) -> list[Found]:
    """fp32 places (n, 4 + classes) on the CPU -> objects that score `threshold` or more, the surest first.

    Of boxes of one class whose intersection is more than `overlap` of their union, the surest stays.
    """
    scores, labels = places[:, 4:].max(1)
    order = scores.argsort(descending=True, stable=True)[:MOST]
    order = order[scores[order] >= threshold]
    boxes, labels = places[order, :4], labels[order]
    rivals = (shared(boxes) > overlap) & (labels[:, None] == labels[None])
    kept: list[int] = []
    for place in range(len(order)):
        if not rivals[place, kept].any():
            kept.append(place)
    found = zip(labels[kept].tolist(), scores[order[kept]].tolist(), boxes[kept].tolist(), strict=True)
    return [Found(label, score, tuple(box)) for label, score, box in found]


def shared(boxes: Tensor) -> Tensor:
    """(n, 4) -> (n, n): intersection over union."""
    first, second = boxes[:, None], boxes[None]
    sides = torch.minimum(first[..., 2:], second[..., 2:]) - torch.maximum(first[..., :2], second[..., :2])
    common = sides.clamp(min=0).prod(-1)
    area = (boxes[:, 2:] - boxes[:, :2]).clamp(min=0).prod(-1)
    return common / (area[:, None] + area[None] - common).clamp(min=1e-9)
