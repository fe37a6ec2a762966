"""Which place of a detector answers for which object, by how well it already does.

Task-aligned One-stage Object Detection (TOOD, arXiv 2108.07755): a place suits an object by its
score for the object's class and the overlap of its box, s^alpha u^beta. As many places an object
as ``num_places``: many to learn from, or one, so that no doubles have to be suppressed (consistent
dual assignments, arXiv 2405.14458).
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.ops import box_iou

ALPHA, BETA = 1.0, 6.0  # TOOD's
CHUNK = 2**22  # pairs of places and objects that are looked at at a time: some 100 MiB


class Assigned(NamedTuple):
    """``places`` (n,) answer for ``objects`` (n,), with a quality (n,) in 0..1 to be learnt."""

    places: Tensor
    objects: Tensor
    quality: Tensor


@torch.no_grad()
def assign(
    scores: Tensor, boxes: Tensor, centres: Tensor, truth: Tensor, classes: Tensor, num_places: int
) -> Assigned:
    """The places of one image that answer for its objects.

    ``scores`` (P, C) in 0..1 and ``boxes`` (P, 4) are what the places say, ``centres`` (P, 2) x and
    y, ``truth`` (n, 4) and ``classes`` (n,) the objects. Only places within an object answer for
    it; where there is none (a tiny one), the nearest. A place that suits several answers for the
    one that it overlaps most. Quality is a place's suitability as a part of the best one's of its
    object, times that one's overlap.
    """
    parts: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
    step = max(1, CHUNK // max(1, len(centres)))
    for start in range(0, len(truth), step):
        part = slice(start, start + step)
        overlap = box_iou(truth[part].float(), boxes.float())  # [n, P]
        suits = scores[:, classes[part]].T.float().pow(ALPHA) * overlap.pow(BETA)
        is_inside = _inside(centres, truth[part])
        # Above 0, so that a place within outdoes those outside also where nothing overlaps yet.
        rank = torch.where(is_inside, suits + 1e-9 * overlap + 1e-30, suits.new_zeros(()))
        value, place = rank.topk(min(num_places, len(centres)), dim=1)
        which = torch.arange(start, start + len(place), device=place.device)[:, None]
        which = which.expand_as(place)
        is_taken = value > 0
        rows = (which - start)[is_taken]
        columns = place[is_taken]
        parts.append((columns, which[is_taken], suits[rows, columns], overlap[rows, columns]))
    if not parts:
        none = torch.zeros(0, dtype=torch.int64, device=centres.device)
        return Assigned(none, none, torch.zeros(0, device=centres.device))
    places, objects, suits, overlap = (torch.cat(column) for column in zip(*parts, strict=True))
    # Of those that a place suits, the object that it overlaps most comes last, and so stays.
    order = overlap.argsort(stable=True)
    owner = torch.full((len(centres),), -1, dtype=torch.int64, device=centres.device)
    turns = torch.arange(len(order), device=owner.device)
    owner = owner.scatter_reduce(0, places[order], turns, "amax")
    kept = order[owner[owner >= 0]]
    places, objects, suits, overlap = (each[kept] for each in (places, objects, suits, overlap))
    most_suited, most_overlap = (
        each.new_zeros(len(truth)).scatter_reduce(0, objects, each, "amax")
        for each in (suits, overlap)
    )
    quality = suits / most_suited[objects].clamp(min=1e-30) * most_overlap[objects]
    return Assigned(places, objects, quality)


def _inside(centres: Tensor, boxes: Tensor) -> Tensor:
    """Which places (n, P) lie in which boxes; of a box without any the nearest to its middle."""
    x, y = centres.unbind(1)
    left, top, right, bottom = (side[:, None] for side in boxes.unbind(1))
    found = (x > left) & (x < right) & (y > top) & (y < bottom)
    distance = (x - (left + right) / 2).square() + (y - (top + bottom) / 2).square()
    nearest = torch.zeros_like(found).scatter_(1, distance.argmin(1, keepdim=True), True)
    return torch.where(found.any(1, keepdim=True), found, nearest)
