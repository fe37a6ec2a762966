"""Open scenes by their place: the layout is recognised by looking, and told."""

import logging
import os
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from limbeck.data.folder import SPLIT_OF, named
from limbeck.data.open import find_form, keep_labels, split_holdout
from limbeck.data.scenes.annotated import AnnotatedScenes
from limbeck.data.scenes.class_table import given_table
from limbeck.data.scenes.coding import deduce
from limbeck.data.scenes.layout import Found, Place
from limbeck.data.scenes.options import SceneOptions
from limbeck.data.scenes.pixels import RawMask
from limbeck.data.scenes.scene import RenumberedScenes, Scenes, SceneSubset
from limbeck.data.source import BadImage, Source, Subset
from limbeck.errors import UserError
from limbeck.records import IGNORE

log = logging.getLogger("limbeck")

T = TypeVar("T", bound=Source)

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
NUM_COUNTED = 32  # where that is known, to say how large the classes are
NUM_SHOWN = 5  # images with their masks
NUM_NAMED = 30  # classes


def open_scenes(
    root: str, options: SceneOptions, split: str | None = None, *, is_known: bool = False
) -> Scenes:
    """The scenes of a place, see ``SceneOptions``; ``split`` (options.split) of those it holds.

    What was recognised is logged, but of a place that ``is_known``. Raises UserError where there
    are no masks, or no way to tell what they mean.
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
    raws = _look(found)
    known = [] if found.is_certain and table is found.table else raws
    coding = deduce(known, table, options, has_background=found.has_background)
    scenes = AnnotatedScenes(found, coding, options)
    for note in (*(() if is_known else _tell(root, scenes, raws)), *found.notes):
        log.info("%s", note)
    if found.problems:
        keys = [key for key, _ in found.problems]
        log.warning("%s left out: %s.", named(keys, "image"), found.problems[0][1])
    return scenes


def open_both(options: SceneOptions) -> tuple[Scenes, Scenes]:
    """The scenes to train on and those to score on, with the same classes.

    The latter are of eval_root, or else a split of root: its eval_split, or test images where it
    has no such; and else a part that is held out.
    """
    train = open_scenes(options.root, options)
    held_out = _held_out(train, options)
    if held_out is None:
        kept, rest = split_holdout(train, options)
        train, held_out = _part(train, kept), _part(train, rest)
    if options.label_fraction < 1:
        kept = keep_labels(train, options.label_fraction, options.label_seed)
        train = _part(train, kept)
    return train, held_out


def _held_out(train: Scenes, options: SceneOptions) -> Scenes | None:
    splits = train.found.splits if isinstance(train, AnnotatedScenes) else ()
    return other_scenes(train, options, splits, open_scenes, with_classes)


def other_scenes(
    train: T, options: Any, splits: Sequence[str], opened: Callable[..., T],
    with_same: Callable[..., T],
) -> T | None:  # fmt: skip
    """What is scored on of another place or split, if there is any: ``opened``, and with the
    classes of what is trained on."""
    if options.eval_root:
        other = opened(options.eval_root, options, options.eval_split)
        return with_same(other, train.classes, options.eval_root, options.root)
    taken = {SPLIT_OF.get(word.strip().lower(), word.strip()) for word in options.split.split("+")}
    for split in (options.eval_split, "validation", "test"):
        if split in splits and split not in taken:
            other = opened(options.root, options, split, is_known=True)
            return with_same(other, train.classes, split, options.split)
    return None


def _part(scenes: Scenes, part: Source) -> Scenes:
    assert isinstance(part, Subset)
    return SceneSubset(scenes, part.indices)


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
        raise UserError(
            " ".join([f"{root} has no masks in the layout {wanted}.", *place.notes])
            + " See the folder, or leave --data.layout out."
        )
    raise UserError(
        f"There are no masks in {root}. They are looked for in folders called masks, labels, "
        "annotations and the like, with the names of their images, and beside images as "
        f"NAME_mask.png; pass their folder as --data.masks.{''.join(f' {n}' for n in place.notes)}"
    )


def _imported(address: str) -> Callable[..., Found]:
    module, _, function = address.partition(":")
    return getattr(import_module(module), function)


def _look(found: Found) -> list[RawMask]:
    """Some of the masks, spread over all; those that can't be read are met again later."""
    number = len(found.images)
    wanted = min(number, NUM_COUNTED if found.is_certain else NUM_LOOKED)
    raws, reason = [], ""
    for index in np.linspace(0, number - 1, wanted).astype(int).tolist():
        try:
            raws.append(found.masks.read(index))
        except BadImage as error:
            reason = reason or f"{found.masks.name(index)}: {error}"
    if not raws:
        raise UserError(f"None of the masks can be read ({reason}).")
    return raws


def _tell(root: str, scenes: AnnotatedScenes, raws: list[RawMask]) -> list[str]:
    """What was recognised, with examples, and how to say otherwise."""
    shown = range(min(NUM_SHOWN, len(scenes)))
    counts = np.zeros(IGNORE + 1, np.int64)
    for raw in raws:
        try:
            counts += np.bincount(scenes.coding.apply(raw).ravel(), minlength=len(counts))
        except BadImage:
            continue  # it is met again, and named
    shares = counts / max(1, counts.sum())
    classes = [f"{name} {share:.1%}" for name, share in zip(scenes.classes, shares, strict=False)]
    more = ", ..." * (len(classes) > NUM_NAMED)
    return [
        f"{root}: {scenes.layout}, {len(scenes)} images with masks (if that is wrong: "
        "--data.layout, --data.masks): "
        f"{', '.join(f'{scenes.key(i)} with {scenes.mask_name(i)}' for i in shown)}.",
        f"{len(scenes.classes)} classes by {scenes.coding.where} (if that is wrong: "
        f"--data.class-names), in {len(raws)} masks: {', '.join(classes[:NUM_NAMED])}{more}; "
        f"ignored {shares[IGNORE]:.1%}.",
    ]
