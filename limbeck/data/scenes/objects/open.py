"""Open images with objects by their place: the layout is recognised by looking, and told."""

import logging
import os
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import cast

import numpy as np

from limbeck.data.decode import decode_image
from limbeck.data.open import find_form, keep_labels, split_holdout
from limbeck.data.scenes.describe import kinds_of
from limbeck.data.scenes.layout import Place
from limbeck.data.scenes.objects.gather import (
    FoundObjects,
    Packed,
    checked,
    merged,
)
from limbeck.data.scenes.objects.options import ObjectOptions
from limbeck.data.scenes.objects.source import (
    Annotated,
    ObjectSource,
    ObjectSubset,
    RenumberedObjects,
)
from limbeck.data.scenes.objects.turning import turned
from limbeck.data.scenes.open import other_scenes
from limbeck.data.scenes.options import SceneOptions
from limbeck.data.source import RawImage, name_digest
from limbeck.errors import UserError

log = logging.getLogger("limbeck")

LAYOUTS = {
    "coco": "limbeck.data.scenes.objects.coco:find_coco",
    "yolo": "limbeck.data.scenes.objects.yolo:find_yolo",
    "voc": "limbeck.data.scenes.objects.voc:find_voc",
}
"""Layouts of folders and what finds their objects, in the order in which they are tried."""
FORMS = ("table", "hub")
FIND_IN_TABLES = "limbeck.data.scenes.objects.tables:find_in_tables"
NUM_SHOWN, NUM_NAMED = 5, 30


class FoundSource(ObjectSource):
    """The images and objects of a place."""

    def __init__(self, found: FoundObjects, options: ObjectOptions) -> None:
        images, problems = checked(found.annotated)
        names = _named(found, options.class_names)
        self.classes, value_of = merged(names, options.merge)
        pairs = zip(found.classes, names, strict=False)
        values = {own: value_of[name] for own, name in pairs if name in value_of}
        self.images, self.packed = found.images, Packed(images, values)
        self.layout, self.splits = found.layout, found.splits
        self.problems = (*found.problems, *problems)
        self.notes = found.notes
        self.has_shapes = self.packed.has_shapes
        self.max_image_pixels = options.max_image_pixels

    def __len__(self) -> int:
        return len(self.images)

    def key(self, index: int) -> str:
        return self.images.key(index)

    def read(self, index: int) -> RawImage:
        return RawImage(self.images.read(index).data, None)

    def objects(self, index: int) -> Annotated:
        return self.packed.of(index)

    def stamp(self, index: int) -> str:
        found = self.packed.of(index)
        arrays = [found.boxes, found.classes, found.is_crowd, found.areas]
        text = repr([array.tolist() for array in arrays]) + repr(found.shapes)
        return name_digest(text, 16).hex()

    def read_objects(self, index: int) -> tuple[np.ndarray, Annotated]:
        data = self.read(index).data
        pixels = decode_image(data, self.max_image_pixels)
        size = tuple(self.packed.sizes[index].tolist())
        return pixels, turned(self.objects(index), size, data, pixels, self.max_image_pixels)


def open_objects(
    root: str, options: ObjectOptions, split: str | None = None, *, is_known: bool = False
) -> ObjectSource:
    """The images of a place, see ``ObjectOptions``; ``split`` (options.split) of those it holds.

    What was recognised is logged, but of a place that ``is_known``. Raises UserError where there
    are no objects.
    """
    if not root:
        raise UserError("There is no data; pass a folder of images with boxes as --data.root.")
    root = os.path.expanduser(root)
    found = FoundSource(_find(root, options, split or options.split), options)
    if found.problems and options.broken == "refuse":
        key, reason = found.problems[0]
        raise UserError(
            f"{len(found.problems)} images or boxes of {root} can't be used: of {key} {reason}; "
            "repair or remove them, or pass --data.broken skip."
        )
    if not len(found):
        raise UserError(f"No image of {root} is there{_first(found.problems)}.")
    if not len(found.packed.boxes):
        raise UserError(f"No image of {root} has an object{_first(found.problems)}.")
    for note in (*(() if is_known else _tell(root, found)), *found.notes):
        log.info("%s", note)
    for (key, reason), *others in kinds_of(found.problems)[:NUM_SHOWN]:
        log.warning("%s: %s%s.", key, reason, f"; likewise {len(others)} more" * bool(others))
    return found


def _named(found: FoundObjects, names: tuple[str, ...]) -> tuple[str, ...]:
    """The classes by the names that are given, where the layout has but numbers."""
    if not names:
        return found.classes
    if not found.is_counted:
        raise UserError(
            f"data.class_names is for classes without names, and {found.layout} names its own "
            f"({', '.join(found.classes[:NUM_NAMED])}); leave it out."
        )
    if len(names) < len(found.classes):
        raise UserError(
            f"data.class_names names {len(names)} classes, and there are {len(found.classes)}; "
            "name them all, in the order of their numbers."
        )
    return names


def _first(problems: tuple[tuple[str, str], ...]) -> str:
    return f" ({problems[0][0]}: {problems[0][1]})" if problems else ""


def open_both_objects(options: ObjectOptions) -> tuple[ObjectSource, ObjectSource]:
    """The images to train on and those to score on, with the same classes; see ``open_both``."""
    train = open_objects(options.root, options)
    held_out = _held_out(train, options)
    if held_out is None:
        parts = [cast("ObjectSubset", part) for part in split_holdout(train, options)]
        train, held_out = (ObjectSubset(train, part.indices) for part in parts)
    if options.label_fraction < 1:
        kept = cast("ObjectSubset", keep_labels(train, options.label_fraction, options.label_seed))
        train = ObjectSubset(train, kept.indices)
    return train, held_out


def _held_out(train: ObjectSource, options: ObjectOptions) -> ObjectSource | None:
    splits = train.splits if isinstance(train, FoundSource) else ()
    return other_scenes(train, options, splits, open_objects, with_object_classes)


def with_object_classes(
    source: ObjectSource, classes: tuple[str, ...], place: str, other: str
) -> ObjectSource:
    """``source`` with ``classes``, which are those of ``other`` and may be more.

    Raises UserError for a class that the others lack.
    """
    if source.classes == classes:
        return source
    return RenumberedObjects(source, classes, place, other)


def _find(root: str, options: ObjectOptions, split: str) -> FoundObjects:
    wanted = options.layout
    # A place asks of its options only what all scenes have.
    own = cast("SceneOptions", options)
    if root.lower().endswith(".json") and Path(root).is_file():
        wanted = "coco"
        place = Place(Path(root).parent, own, split, json_name=Path(root).name)
    elif root.lower().endswith((".yaml", ".yml")) and Path(root).is_file():
        wanted = "yolo"
        place = Place(Path(root).parent, own, split, yaml_name=Path(root).name)
    else:
        form = find_form(root) if wanted == "auto" else wanted
        if form in FORMS:
            return _imported(FIND_IN_TABLES)(root, options, split)
        if options.box_format:
            raise UserError(f"data.box_format is for tables, and {root} is none; leave it out.")
        place = Place(Path(root), own, split)
    if not place.root.is_dir():
        raise UserError(f"{root} is no folder, and the layout {wanted} is one.")
    for name, address in LAYOUTS.items():
        if wanted in ("auto", name):
            found = _imported(address)(place)
            if found is not None:
                return found
    if wanted != "auto":
        raise UserError(
            " ".join([f"{root} has no boxes in the layout {wanted}.", *place.notes])
            + " See the folder, or leave --data.layout out."
        )
    raise UserError(
        f"There are no boxes in {root}. What is recognised: COCO's JSON (with 'categories'), "
        "YOLO's data.yaml, VOC's Annotations/*.xml, tables with a column of objects; see "
        f"docs/objects.md.{''.join(f' {n}' for n in place.notes)}"
    )


def _imported(address: str) -> Callable[..., FoundObjects]:
    module, _, function = address.partition(":")
    return getattr(import_module(module), function)


def _tell(root: str, found: FoundSource) -> list[str]:
    """What was recognised, with examples, and how to say otherwise."""
    counts = np.bincount(found.packed.classes, minlength=len(found.classes)).tolist()
    classes = [f"{name} {count:,}" for name, count in zip(found.classes, counts, strict=True)]
    more = ", ..." * (len(classes) > NUM_NAMED)
    numbers = np.diff(found.packed.ends)
    shown = ", ".join(
        f"{found.key(index)} with {numbers[index]}" for index in range(min(NUM_SHOWN, len(found)))
    )
    return [
        f"{root}: {found.layout}, {len(found):,} images with {len(found.packed.boxes):,} objects, "
        f"{int((numbers == 0).sum()):,} of them without any (if that is wrong: --data.layout): "
        f"{shown}.",
        f"{len(found.classes)} classes: {', '.join(classes[:NUM_NAMED])}{more}.",
    ]
