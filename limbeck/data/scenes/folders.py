"""Folders of images and masks as people have them: a mask has its image's name, elsewhere or with
an ending."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from limbeck.data.folder import SPLIT_OF, FilesSource, named, walk
from limbeck.data.formats import is_image_name
from limbeck.data.scenes.class_table import find_table
from limbeck.data.scenes.layout import FileMasks, Found, Place, split_in
from limbeck.errors import UserError

# fmt: off
MASK_FOLDERS = {
    "mask", "masks", "label", "labels", "annotation", "annotations", "annot", "annots", "gt",
    "gts", "groundtruth", "ground_truth", "seg", "segs", "segmentation", "segmentations",
    "segmentationclass", "segmentation_masks", "labeled", "labelled", "truth", "target", "targets",
    "png_masks", "masks_png", "labels_png", "labeledapproved_full", "semantic", "gtfine",
}
IMAGE_FOLDERS = {
    "image", "images", "img", "imgs", "photo", "photos", "picture", "pictures", "jpegimages",
    "rgb", "input", "inputs", "frames", "original", "originals", "701_stillsraw_full",
    "leftimg8bit", "data",
}
ENDINGS = (
    "_mask", "_masks", "-mask", " mask", "_label", "_labels", "_labelids", "_seg",
    "_segmentation", "_gt", "_annotation", "_l", "_p", "_matte", ".mask", ".seg", ".label",
)
"""Of masks' names, in small letters."""
IMAGE_ENDINGS = ("_image", "_img", "_rgb", "_sat", "_leftimg8bit", "-image", "_photo")
PICTURES = re.compile("colou?r|vis|overlay|instance|preview|rgb", re.IGNORECASE)
"""In names of what is drawn for people, beside the masks proper."""
# fmt: on


@dataclass(frozen=True)
class _Mask:
    name: str
    key: str
    rank: tuple[bool, bool, str]


def find_folders(place: Place) -> Found | None:
    """The images below the root that have a mask; None if nothing there looks like a mask."""
    given = place.options.masks
    if given:
        root, *both = _with_given(place, Path(given).expanduser())
        tries = [(both[0], both[1])]
    else:
        root, files = place.root, [name for name in place.names if is_image_name(name)]
        tries = [_by_folder(files), _by_ending(files)]
    tries = [(images, masks) for images, masks in tries if images and masks]
    if not tries:
        return None
    for images, masks in tries:
        mask_of, doubles = _pair(images, masks)
        if mask_of:
            break
    else:
        raise UserError(
            f"No mask in {root} has the name of an image in {place.root} (such as "
            f"{tries[0][0][0]}, and {tries[0][1][0]}); name them alike, endings such as _mask are "
            "allowed."
        )
    is_taken = place.choose(split_in(name) for name in mask_of)
    chosen = [name for name in images if is_taken(split_in(name))]
    kept = [name for name in chosen if name in mask_of]
    unpaired = sorted(set(masks) - set(mask_of.values()) - set(doubles))
    notes = [*place.notes]
    if unpaired:
        notes.append(f"{named(unpaired, 'mask')} without an image left out.")
    if doubles:
        notes.append(f"{named(doubles, 'further file')} of masks that are there already left out.")
    folders = sorted({PurePosixPath(mask_of[name]).parts[0] for name in kept[:1]})
    return Found(
        images=FilesSource(place.root, kept, (), None),
        masks=FileMasks(root, [mask_of[name] for name in kept], place.options.max_image_pixels),
        layout="folders of images and masks",
        table=find_table(place.root) or find_table(root, ["", "..", *folders]),
        problems=tuple((name, "it has no mask") for name in chosen if name not in mask_of),
        notes=tuple(notes),
        splits=tuple(sorted({split for name in mask_of if (split := split_in(name))})),
    )


def _with_given(place: Place, root: Path) -> tuple[Path, list[str], list[str]]:
    """(root of the masks, images, masks), of a folder of masks that was given."""
    if not root.is_dir():
        inner = place.root / root
        if not inner.is_dir():
            raise UserError(f"data.masks: there is no folder {root}, nor {inner}.")
        root = inner
    inside = f"{root.resolve()}/"
    images = [
        name
        for name in place.names
        if is_image_name(name) and not f"{(place.root / name).resolve()}".startswith(inside)
    ]
    return root, images, [name for name in sorted(walk(root)) if is_image_name(name)]


def _by_folder(files: list[str]) -> tuple[list[str], list[str]]:
    """(images, masks) of files whose folders say that they are masks."""
    masks = {
        name for name in files if any(map(_is_mask_word, PurePosixPath(name.lower()).parts[:-1]))
    }
    return [name for name in files if name not in masks], sorted(masks)


def _is_mask_word(folder: str) -> bool:
    # SegNet's CamVid has trainannot beside train, others train_labels or masks_png.
    words = (folder, folder.rpartition("_")[2], folder.partition("_")[0])
    return folder.endswith("annot") or any(word in MASK_FOLDERS for word in words)


def _by_ending(files: list[str]) -> tuple[list[str], list[str]]:
    """(images, masks) of files where only endings of names tell, and the image is there."""
    stems = {_stem(name) for name in files}
    bare = {_without(stem, IMAGE_ENDINGS) for stem in stems}
    masks = [
        name
        for name in files
        if (stem := _without(_stem(name), ENDINGS)) != _stem(name) and stem in stems | bare
    ]
    return sorted(set(files) - set(masks)), masks


def _pair(images: list[str], masks: list[str]) -> tuple[dict[str, str], list[str]]:
    """The mask of each image that has one, and masks of which there is a better one.

    Folders count where they make a difference: first all but those of images and masks, then the
    names alone where these are unique.
    """
    for keys in (_keys_with_folders, _stems):
        image_of: dict[str, list[str]] = {}
        for name in images:
            for key in keys(name, IMAGE_ENDINGS):
                image_of.setdefault(key, []).append(name)
        found: dict[str, list[_Mask]] = {}
        for name in masks:
            for key in keys(name, ENDINGS):
                if len(image_of.get(key, ())) == 1:
                    found.setdefault(image_of[key][0], []).append(_Mask(name, key, _rank(name)))
                    break
        if found:
            best = {image: min(each, key=lambda mask: mask.rank) for image, each in found.items()}
            used = {mask.name for mask in best.values()}
            others = [m.name for each in found.values() for m in each if m.name not in used]
            return {image: mask.name for image, mask in best.items()}, sorted(others)
    return {}, []


def _rank(name: str) -> tuple[bool, bool, str]:
    return bool(PICTURES.search(name)), not name.lower().endswith(".png"), name


def _keys_with_folders(name: str, endings: tuple[str, ...]) -> Iterator[str]:
    folders = filter(None, map(_own_word, PurePosixPath(name.lower()).parts[:-1]))
    prefix = "/".join([*folders, ""])
    for stem in _stems(name, endings):
        yield prefix + stem


def _own_word(folder: str) -> str:
    """What of a folder's name is the same for images and masks: of train_labels train."""
    words = MASK_FOLDERS | IMAGE_FOLDERS
    if folder in words or folder.endswith("annot"):
        return "" if folder in words else folder.removesuffix("annot")
    head, _, tail = folder.partition("_")
    if head in words or tail in words:
        rest = tail if head in words else head
        return rest if rest in SPLIT_OF else ""
    return folder


def _stems(name: str, endings: tuple[str, ...]) -> Iterator[str]:
    """A file's own stem, and that without an ending."""
    stem = PurePosixPath(name.lower()).stem
    yield stem
    if (bare := _bare(stem, endings)) != stem:
        yield bare


def _stem(name: str) -> str:
    """With its folder."""
    return name.lower().removesuffix(PurePosixPath(name.lower()).suffix)


def _without(stem: str, endings: tuple[str, ...]) -> str:
    folder, slash, base = stem.rpartition("/")
    return f"{folder}{slash}{_bare(base, endings)}"


def _bare(stem: str, endings: tuple[str, ...]) -> str:
    found = max((ending for ending in endings if stem.endswith(ending)), key=len, default="")
    return stem.removesuffix(found) or stem
