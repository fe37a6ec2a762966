"""Open a source by its address, hold out a part of it, and name what it holds."""

import logging
import os
from collections.abc import Callable
from importlib import import_module
from pathlib import Path, PurePath

from limbeck.data.folder import named, walk
from limbeck.data.formats import is_image_name
from limbeck.data.options import DataOptions
from limbeck.data.source import Source, Subset, name_digest, sum_of_digests
from limbeck.data.splits import expand_pattern, find_files, is_packed_name, is_pattern, splits_of
from limbeck.errors import UserError, did_you_mean

log = logging.getLogger("limbeck")

FORMS = {
    "folder": "limbeck.data.folder:open_folder",
    "table": "limbeck.data.hub:open_table",
    "shards": "limbeck.data.shards:open_shards",
    "hub": "limbeck.data.hub:open_hub",
}
"""Forms of data and their ``(root, options, split) -> Source``; a new form is one line here."""

FORM_OF_SUFFIX = {".parquet": "table", ".arrow": "table", ".tar": "shards"}
TABLES = {"table", "hub"}
MAX_STRAYS = 20  # previews and logos beside tables or shards; nobody trains on so few
SPLITS = "a hub data set (hf:NAME) or files of several splits (train-*, test-*)"
USES = {
    "split": f"{SPLITS} in --data.root",
    "eval_split": f"{SPLITS} in --data.eval-root",
    "image_column": "tables and hub data sets",
    "label_column": "tables and hub data sets",
}
"""Options of some forms only, and which."""


def open_source(root: str, options: DataOptions, split: str) -> Source:
    """Open ``root`` as a source of images, see ``DataOptions.root`` for its forms.

    ``split`` is for hub data sets and files of several splits. Raises UserError for a missing
    place, a form that is not known, and a place without images.
    """
    if not root:
        raise UserError("There is no data; pass a folder of images as --data.root.")
    root = os.path.expanduser(root)
    form = find_form(root)
    _refuse_without_effect(root, form, options)
    module, _, function = FORMS[form].partition(":")
    opener: Callable[[str, DataOptions, str], Source] = getattr(import_module(module), function)
    return opener(root, options, split)


def split_holdout(source: Source, options: DataOptions) -> tuple[Source, Source]:
    """Split ``source`` into (train, holdout) by a hash of each key.

    Whether an image is held out depends on its own key only, so adding images moves no other,
    until ``max_holdout`` or one half of the source is reached: then the lowest hashes stay. Where
    all of a few images have too high a hash, the lowest are taken, as many as the ratio means, and
    at least one: something has to be scored on.
    """
    most = min(options.max_holdout, len(source) // 2)
    ranked = sorted((_key_fraction(source.key(index)), index) for index in range(len(source)))
    count = sum(fraction < options.holdout_ratio for fraction, _ in ranked)
    if not count and options.holdout_ratio and most:
        count = min(max(1, round(options.holdout_ratio * len(source))), most)
        log.info(
            "By the hashes of their names none of %d images would be held out "
            "(--data.holdout-ratio %g); something has to be scored on, so %d %s.",
            len(source), options.holdout_ratio, count, "are" if count > 1 else "is",
        )  # fmt: skip
    held_out = sorted(index for _, index in ranked[: min(count, most)])
    is_held_out = set(held_out)
    train = [index for index in range(len(source)) if index not in is_held_out]
    return Subset(source, train), Subset(source, held_out)


def keep_labels(source: Source, fraction: float, seed: int) -> Source:
    """A part of a labelled source: of each class its ``fraction``, rounded, and at least one image.

    Images are ranked by a hash of seed and key, so that neither their order nor other classes
    matter, and a smaller part lies within a larger one of the same seed. Raises UserError for a
    source without labels.
    """
    if not source.classes:
        raise UserError(
            "data.label_fraction is for labelled images, and these have no labels; use class "
            "sub-folders or a label column, or leave it out."
        )
    by_class: dict[int | None, list[tuple[float, int]]] = {}
    for index in range(len(source)):
        place = _key_fraction(f"{seed}/{source.key(index)}")
        by_class.setdefault(source.label(index), []).append((place, index))
    kept = [
        index
        for ranked in by_class.values()
        for _, index in sorted(ranked)[: max(1, round(fraction * len(ranked)))]
    ]
    return Subset(source, sorted(kept))


def data_fingerprint(source: Source) -> str:
    """32 hex digits of the keys and labels, whatever their order; the pixels are not read."""

    def text(index: int) -> str:
        label = source.label(index)
        # By class name, because an index shifts when a class is added before it.
        name = source.classes[label] if label is not None else ""
        return f"{source.key(index)}\0{name}"

    return sum_of_digests(map(text, range(len(source))))


def _key_fraction(key: str) -> float:
    return int.from_bytes(name_digest(key, 16)[:6], "big") / 2**48


def _refuse_without_effect(root: str, form: str, options: DataOptions) -> None:
    """An option that nothing heeds would leave its user in a wrong belief."""
    default = DataOptions()
    changed = {name for name in USES if getattr(options, name) != getattr(default, name)}
    if not changed:
        return
    train, held_out = (
        find_form(os.path.expanduser(place)) if place else None
        for place in (options.root, options.eval_root)
    )
    heeded = {"image_column", "label_column"} if {form, train, held_out} & TABLES else set()
    heeded |= {"split"} if _has_splits(options.root or root, train or form) else set()
    heeded |= {"eval_split"} if _has_splits(options.eval_root, held_out) else set()
    for name in sorted(changed - heeded):
        raise UserError(
            f"--data.{name.replace('_', '-')} has no effect with {root}: it is for {USES[name]}; "
            "leave it out."
        )


def _has_splits(root: str, form: str | None) -> bool:
    """Whether there is anything to choose from."""
    if form not in {"table", "shards"} or "://" in root:
        return form == "hub"
    files = find_files(os.path.expanduser(root), lambda name: _form_of_file(name) == form)
    return bool(splits_of([name for _, name in files]))


def _form_of_file(name: str) -> str | None:
    if is_packed_name(name):
        return "shards"  # which say what to do with it
    return FORM_OF_SUFFIX.get(PurePath(name).suffix.lower())


def find_form(root: str) -> str:
    """The form of data at an address, one of ``FORMS``; raises UserError if it has none."""
    if root.startswith("hf:"):
        return "hub"
    if "://" in root:
        if ".tar" in root.lower():
            return "shards"
        raise UserError(f"'{root}' is no address of .tar shards; only these are read remotely.")
    if is_pattern(root):
        forms = {_form_of_file(name) for name in expand_pattern(root)}
        if len(forms) > 1 or None in forms:
            raise UserError(
                f"The pattern {root} must stand for .tar shards alone, or for .parquet or .arrow "
                "files alone; correct it, or pass the folder as --data.root."
            )
        return str(*forms)
    path = Path(root)
    if not os.path.exists(root):
        raise UserError(_missing(path))
    if path.is_dir():
        return _form_of_folder(path)
    form = _form_of_file(path.name)
    if form is not None:
        return form
    if is_image_name(path.name):
        raise UserError(f"{root} is one image; pass the folder with all of them as --data.root.")
    raise UserError(
        f"{root} is no form of data that is known; pass a folder of images, a .parquet or .arrow "
        "file, .tar shards, or hf:NAME."
    )


def _form_of_folder(path: Path) -> str:
    """Tables or shards if there are any, else images; a few images beside them are left out.

    More are refused: none but the user knows which of the two are meant. Compressed shards, which
    can't be read, and the hub's tables about images (metadata.parquet) leave images what they are.
    """
    images: list[str] = []
    packed: list[str] = []
    found: dict[str, list[str]] = {"table": [], "shards": []}
    for name in walk(path):
        if is_image_name(name):
            images.append(name)
        elif is_packed_name(name):
            packed.append(name)
        elif form := _form_of_file(name):
            found[form].append(name)
    if images:
        found["table"] = [name for name in found["table"] if PurePath(name).stem != "metadata"]
    form = next((form for form, names in found.items() if names), None)
    if form is None:
        return "shards" if packed and not images else "folder"
    if len(images) > MAX_STRAYS:
        first = min(found[form])
        kinds = f"{named(sorted(images), 'image')} and {named(sorted(found[form]), 'file')}"
        raise UserError(
            f"{path} holds both {kinds} of {'tables' if form == 'table' else 'shards'}; pass "
            f"{path}/**/*{PurePath(first).suffix} as --data for these, or move them away for the "
            "images."
        )
    return form


def _missing(path: Path) -> str:
    there = path.parent
    while not there.is_dir():
        there = there.parent
    wanted = path.relative_to(there).parts[0]
    names = sorted(entry.name for entry in there.iterdir())
    hint = did_you_mean(wanted, names)
    return f"There is no {path}; the folder {there} exists, but holds no '{wanted}'.{hint}"
