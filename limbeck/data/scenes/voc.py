"""PASCAL VOC's folders, and those of tools that export such: JPEGImages beside SegmentationClass,
splits as lists in ImageSets/Segmentation."""

import re
from pathlib import PurePosixPath

from limbeck.data.folder import SPLIT_OF, FilesSource
from limbeck.data.formats import is_image_name
from limbeck.data.scenes.class_table import find_table
from limbeck.data.scenes.layout import FileMasks, Found, Place, read_list
from limbeck.data.scenes.published import VOC
from limbeck.errors import UserError

MASKS, IMAGES, LISTS = "SegmentationClass/", "JPEGImages/", "ImageSets/Segmentation/"
NAME = re.compile(r"\d{4}_\d{6}")  # of VOC's own images


def find_voc(place: Place) -> Found | None:
    """What lies in the first folder with both, wherever below the root: VOCdevkit/VOC2012."""
    tops = {name.partition(MASKS)[0] for name in place.names if f"/{MASKS}" in f"/{name}"}
    tops &= {name.partition(IMAGES)[0] for name in place.names if f"/{IMAGES}" in f"/{name}"}
    if not tops:
        return None
    if len(tops) > 1:
        raise UserError(
            f"{place.root} holds several sets of VOC's layout ({', '.join(sorted(tops))}); pass "
            "one of them."
        )
    (top,) = tops
    masks, images = (_by_stem(place.names, top + folder) for folder in (MASKS, IMAGES))
    stems, splits, layout = _listed(place, top, sorted(masks))
    kept = [stem for stem in stems if stem in masks and stem in images]
    is_voc = all(NAME.fullmatch(stem) for stem in kept)
    return Found(
        images=FilesSource(place.root, [images[stem] for stem in kept], (), None),
        masks=FileMasks(place.root, [masks[stem] for stem in kept], place.options.max_image_pixels),
        layout=layout,
        table=find_table(place.root / top) or (VOC if is_voc else None),
        problems=tuple(
            (images.get(stem, stem), "it has no mask" if stem in images else "it is not there")
            for stem in stems
            if stem not in masks or stem not in images
        ),
        notes=tuple(place.notes),
        splits=splits,
    )


def _by_stem(names: list[str], folder: str) -> dict[str, str]:
    """The images in a folder by their stems: in folders below it, too."""
    return {
        name[len(folder) :].rpartition(".")[0]: name
        for name in names
        if name.startswith(folder) and is_image_name(name)
    }


def _listed(place: Place, top: str, masks: list[str]) -> tuple[list[str], tuple[str, ...], str]:
    """The stems of the split, the splits there are, and the layout in words."""
    lists: dict[str, str] = {}
    for name in place.names:
        stem = PurePosixPath(name).stem.lower()
        if name.startswith(top + LISTS) and name.endswith(".txt") and stem in SPLIT_OF:
            lists[SPLIT_OF[stem]] = name
    if not lists:
        return masks, (), "PASCAL VOC"
    is_taken = place.choose(lists)
    stems: list[str] = []
    for split, name in lists.items():
        if is_taken(split):
            stems += [line.split()[0] for line in read_list(place.root / name)]
    return list(dict.fromkeys(stems)), tuple(sorted(lists)), "PASCAL VOC with lists of its splits"
