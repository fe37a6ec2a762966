"""Open scenes by their place: the layout is recognised by looking, and told."""

import logging
import os
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import numpy as np

from limbeck.data.folder import named
from limbeck.data.open import find_form, split_holdout
from limbeck.data.scenes.annotated import AnnotatedScenes
from limbeck.data.scenes.class_table import given_table
from limbeck.data.scenes.coding import deduce
from limbeck.data.scenes.layout import Found, Place
from limbeck.data.scenes.options import SceneOptions
from limbeck.data.scenes.pixels import RawMask
from limbeck.data.scenes.scene import RenumberedScenes, Scenes, SceneSubset
from limbeck.data.source import BadImage, Subset
from limbeck.errors import UserError

log = logging.getLogger("limbeck")

LAYOUTS = {
    "coco": "limbeck.data.scenes.coco:find_coco",
    "cityscapes": "limbeck.data.scenes.cityscapes:find_cityscapes",
    "ade20k": "limbeck.data.scenes.ade20k:find_ade20k",
    "voc": "limbeck.data.scenes.voc:find_voc",
    "folders": "limbeck.data.scenes.folders:find_folders",
}
"""Layouts of folders and what finds their scenes, in the order in which they are tried: published
ones before folders of any kind."""
FORMS = {
    "table": "limbeck.data.scenes.tables:find_in_tables",
    "hub": "limbeck.data.scenes.tables:find_in_tables",
    "shards": "limbeck.data.scenes.shards:find_in_shards",
}
"""What is no folder of files."""
NUM_LOOKED = 256  # masks that are looked at to know what the values mean


def open_scenes(root: str, options: SceneOptions, split: str | None = None) -> Scenes:
    """The scenes of a place, see ``SceneOptions``; ``split`` (options.split) of those it holds.

    What was recognised is logged. Raises UserError where there are no masks, or no way to tell what
    they mean.
    """
    if not root:
        raise UserError("There is no data; pass a folder of images and masks as --data.root.")
    root = os.path.expanduser(root)
    found = _find(root, options, split or options.split)
    if found.problems and options.broken == "refuse":
        key, reason = found.problems[0]
        raise UserError(
            f"{len(found.problems)} images of {root} can't be used: of {key} {reason}; repair or "
            "remove them, or pass --data.broken skip."
        )
    if not len(found.images):
        raise UserError(f"No image in {root} has a mask.")
    table = given_table(options.class_names, options.class_file) or found.table
    raws = [] if found.is_certain else _look(found)
    coding = deduce(raws, table, options, has_background=found.has_background)
    scenes = AnnotatedScenes(found, coding, options)
    scenes.notes = (*_tell(root, scenes, options), *found.notes)
    for note in scenes.notes:
        log.info("%s", note)
    if found.problems:
        log.warning("%s left out: %s.", *_left_out(found))
    return scenes


def open_both(options: SceneOptions) -> tuple[Scenes, Scenes]:
    """The scenes to train on and those to score on, with the same classes.

    The latter are of eval_root, or else a split of root: its eval_split, or test images where it
    has no such; and else a part that is held out.
    """
    train = open_scenes(options.root, options)
    if options.eval_root:
        other = open_scenes(options.eval_root, options, options.eval_split)
        return train, with_classes(other, train.classes, options.eval_root, options.root)
    splits = train.found.splits if isinstance(train, AnnotatedScenes) else ()
    taken = set(options.split.split("+"))
    for split in (options.eval_split, "validation", "test"):
        if split in splits and split not in taken:
            other = open_scenes(options.root, options, split)
            return train, with_classes(other, train.classes, split, options.split)
    kept, held_out = split_holdout(train, options)
    assert isinstance(kept, Subset) and isinstance(held_out, Subset)
    return SceneSubset(train, kept.indices), SceneSubset(train, held_out.indices)


def with_classes(scenes: Scenes, classes: tuple[str, ...], place: str, other: str) -> Scenes:
    """``scenes`` with label maps of ``classes``, which are those of ``other`` and may be more.

    Raises UserError for a class that the others lack.
    """
    if scenes.classes == classes:
        return scenes
    return RenumberedScenes(scenes, classes, place, other)


def _find(root: str, options: SceneOptions, split: str) -> Found:
    wanted = options.layout
    if root.lower().endswith(".json") and Path(root).is_file():
        wanted, form = "coco", "folder"
        place = Place(Path(root).parent, options, split, json_name=Path(root).name)
    else:
        form = wanted if wanted != "auto" else find_form(root)
        place = Place(Path(root), options, split)
    if form in FORMS:
        return _imported(FORMS[form])(root, options, split)
    if not place.root.is_dir():
        raise UserError(f"{root} is no folder, and the layout {wanted} is one.")
    for name, address in LAYOUTS.items():
        if wanted in ("auto", name):
            found: Found | None = _imported(address)(place)
            if found is not None:
                return found
    if wanted not in ("auto", "folders"):
        what = " (boxes alone are none)" * (wanted == "coco")
        raise UserError(
            f"{root} has no masks in the layout {wanted}{what}; see the folder, or leave "
            "--data.layout out."
        )
    raise UserError(
        f"There are no masks in {root}. They are looked for in folders called masks, labels, "
        "annotations and the like, with the names of their images, and beside images as "
        "NAME_mask.png; pass their folder as --data.masks."
    )


def _imported(address: str) -> Callable[..., Found]:
    module, _, function = address.partition(":")
    return getattr(import_module(module), function)


def _look(found: Found) -> list[RawMask]:
    """Some of the masks, spread over all; those that can't be read are met again later."""
    number = len(found.images)
    raws, reason = [], ""
    for index in np.linspace(0, number - 1, min(number, NUM_LOOKED)).astype(int).tolist():
        try:
            raws.append(found.masks.read(index))
        except BadImage as error:
            reason = reason or f"{found.masks.name(index)}: {error}"
    if not raws:
        raise UserError(f"None of the masks can be read ({reason}).")
    return raws


def _left_out(found: Found) -> tuple[str, str]:
    keys = [key for key, _ in found.problems]
    return named(keys, "image"), found.problems[0][1]


def _tell(root: str, scenes: AnnotatedScenes, options: SceneOptions) -> list[str]:
    classes = ", ".join(scenes.classes[:12]) + ", ..." * (len(scenes.classes) > 12)
    return [
        f"{root}: {scenes.layout}, {len(scenes)} images with masks, such as {scenes.key(0)} with "
        f"{scenes.mask_name(0)} (another layout: --data.layout).",
        f"{len(scenes.classes)} classes by {scenes.coding.where}: {classes}.",
    ]
