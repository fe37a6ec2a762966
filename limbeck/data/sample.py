"""Some images of many, by chance and not by their place: the first of a listing are one class."""

from typing import Literal

from limbeck.data.source import Source, Subset, name_digest
from limbeck.errors import UserError

Sampling = Literal["random", "stratified"]


def draw_sample(source: Source, count: int, how: Sampling | None = None, *, seed: int) -> Subset:
    """At most ``count`` images in random order: a pure function of keys, labels and ``seed``.

    "random": every image has the same chance. "stratified": as many of each class as of every
    other, as far as it has them. None is stratified where there are labels. The order of the
    listing has no influence. Raises UserError for "stratified" without labels.
    """
    if how == "stratified" and not source.classes:
        raise UserError("Images without labels can't be drawn by class; use --sampling random.")

    def chance(index: int) -> bytes:
        return name_digest(f"{seed}\0{source.key(index)}", 16)

    order = sorted(range(len(source)), key=chance)
    chosen = order[:count]
    if source.classes and how != "random" and count < len(order):
        seen: dict[int | None, int] = {}
        rounds = []
        for place, index in enumerate(order):
            label = source.label(index)
            seen[label] = seen.get(label, 0) + 1
            rounds.append((seen[label], place))
        # The first of every class, then the second: and in the order of chance again.
        chosen = [order[place] for place in sorted(place for _, place in sorted(rounds)[:count])]
    return Subset(source, chosen)


def num_classes_of(source: Source) -> int:
    """How many classes the images of a source cover; 0 without labels."""
    return len({source.label(index) for index in range(len(source))} - {None})
