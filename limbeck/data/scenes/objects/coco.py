"""COCO's annotations as boxes, with their outlines: of any tool that writes such, by split."""

from collections import defaultdict

from limbeck.data.folder import FilesSource, named
from limbeck.data.scenes.coco import (
    Annotation,
    Coco,
    Id,
    candidates,
    category_names,
    files_by_name,
    find_file,
    read_coco,
    refuse_doubles,
    split_of,
)
from limbeck.data.scenes.layout import Place
from limbeck.data.scenes.objects.gather import FoundObjects, RawImage, RawObject
from limbeck.errors import UserError


def find_coco(place: Place) -> FoundObjects | None:
    """The images that JSON files list; None where there are no such files."""
    read = {name: coco for name in candidates(place) if (coco := read_coco(place, name))}
    if not read:
        return None
    splits = {name: split_of(name) for name in read}
    is_taken = place.choose(splits.values())
    files_of = files_by_name(place)
    images: list[RawImage] = []
    problems: list[tuple[str, str]] = []
    used = [name for name in read if is_taken(splits[name])]
    for name in used:
        found, bad = _of_file(place, name, read[name], files_of)
        images += found
        problems += bad
    refuse_doubles([image.key for image in images], place)
    notes = [*place.notes]
    if empty := [image.key for image in images if not image.objects]:
        notes.append(f"{named(empty, 'image')} without objects: shown as negatives.")
    return FoundObjects(
        images=FilesSource(place.root, [image.key for image in images], (), None),
        annotated=images,
        classes=tuple(category_names(read)),
        layout=f"COCO annotations ({', '.join(used)})",
        problems=tuple(problems),
        notes=tuple(notes),
        splits=tuple(sorted({split for split in splits.values() if split})),
    )


def _of_file(
    place: Place, name: str, coco: Coco, files_of: dict[str, list[str]]
) -> tuple[list[RawImage], list[tuple[str, str]]]:
    name_of = {each["id"]: each["name"] for each in coco["categories"]}
    problems: list[tuple[str, str]] = []
    objects: dict[Id, list[RawObject]] = defaultdict(list)
    for each in coco["annotations"]:
        if each["category_id"] not in name_of:
            raise UserError(
                f"{place.root / name} has annotations of the category "
                f"{each['category_id']!r}, which it does not list; correct it."
            )
        if (found := _object(each, name_of[each["category_id"]])) is not None:
            objects[each["image_id"]].append(found)
        else:
            problems.append((name, "an annotation without a box is left out"))
    images: dict[Id, RawImage] = {}
    for image in coco["images"]:
        file = find_file(image["file_name"], name, files_of)
        size = (image.get("height") or 0, image.get("width") or 0)
        if image["id"] in images:
            raise UserError(
                f"{place.root / name} lists two images of the id {image['id']!r}, so that their "
                "annotations can't be told apart; correct it."
            )
        if file is None:
            problems.append((image["file_name"], "its file is not there"))
        elif min(size) < 1 or size[0] * size[1] > place.options.max_image_pixels:
            problems.append((file, f"its size in {name} is {size[1]} x {size[0]}"))
        else:
            images[image["id"]] = RawImage(file, size, objects[image["id"]])
    known = {image["id"] for image in coco["images"]}
    if unknown := [each for each in objects if each not in known]:
        problems.append((
            name, f"annotations of {len(unknown)} images that it does not list are left out"
        ))  # fmt: skip
    return list(images.values()), problems


def _object(each: Annotation, name: str) -> RawObject | None:
    """None of an annotation that says no place."""
    shape, box = each.get("segmentation") or None, each.get("bbox")
    if box is None or len(box) != 4:
        if not isinstance(shape, list):
            return None
        x, y = (sum((outline[start::2] for outline in shape), []) for start in (0, 1))
        if not (x and y):
            return None
        box = [min(x), min(y), max(x) - min(x), max(y) - min(y)]
    left, top, width, height = box
    corners = (left, top, left + width, top + height)
    return RawObject(name, corners, shape, each.get("area"), bool(each.get("iscrowd")))
