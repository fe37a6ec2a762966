"""The classes of two sources as the same: by their names, whatever their order."""

import logging

from limbeck.data.source import Renumbered, Source
from limbeck.errors import UserError

log = logging.getLogger("limbeck")

NUM_LISTED = 5  # classes named in an error


def match_classes(source: Source, classes: tuple[str, ...], place: str, other: str) -> Source:
    """``source`` with its labels as indices of ``classes``, which are those of ``other``.

    They are matched by their names; where these are all numbers ("1" and "01", the class 1 of a
    table) by the numbers, and then a number without an image doesn't count, because the classes of
    a table are counted from 0. Raises UserError, with the reason, where they are not the same.
    """
    if source.classes == classes:
        return source
    for names, owner in ((source.classes, place), (classes, other)):
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise UserError(f"Two classes of {owner} are called '{twice}'; rename one of them.")
    index_of = {name: index for index, name in enumerate(classes)}
    if index_of.keys() == set(source.classes):
        return Renumbered(source, classes, [index_of[name] for name in source.classes])
    mine, theirs = _numbers(source.classes), _numbers(classes)
    if mine and theirs:
        labels = {source.label(index) for index in range(len(source))} - {None}
        index_of_number = {number: index for index, number in enumerate(theirs)}
        # A class that no image has leads nowhere.
        new = [index_of_number.get(number, -1) for number in mine]
        if all(new[label] >= 0 for label in labels):
            if any(source.classes[label] != classes[new[label]] for label in labels):
                log.warning("The classes of %s and %s are matched by number.", place, other)
            return Renumbered(source, classes, new)
    raise UserError(
        f"The classes of {place} are not those of {other} ({_difference(source.classes, classes)})"
        "; both need the same class folders, or labels of the same names."
    )


def _numbers(names: tuple[str, ...]) -> list[int]:
    """The names as numbers, each another; [] if they are none."""
    numbers = [int(name) for name in names] if _are_numbers(names) else []
    return numbers if len(set(numbers)) == len(numbers) else []


def _are_numbers(names: tuple[str, ...]) -> bool:
    return all(name.isascii() and name.isdigit() and len(name) < 10 for name in names)


def _difference(mine: tuple[str, ...], theirs: tuple[str, ...]) -> str:
    if _are_numbers(mine) != _are_numbers(theirs):
        return f"numbers such as '{(mine if _are_numbers(mine) else theirs)[0]}' against words"
    odd = [*(set(mine) - set(theirs)), *(set(theirs) - set(mine))]
    return f"different: {', '.join(sorted(odd)[:NUM_LISTED])}"
