"""COCO's annotations as boxes, with their outlines: of any tool that writes such, by split."""

from collections import Counter, defaultdict

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
from limbeck.data.scenes.objects.gather import FoundObjects, RawImage, RawObject, extent
from limbeck.data.scenes.objects.turning import size_of_file
from limbeck.data.source import BadImage


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
    known = {image["id"] for image in coco["images"]}
    objects: dict[Id, list[RawObject]] = defaultdict(list)
    left_out: Counter[str] = Counter()
    for each in coco["annotations"]:
        if each["category_id"] not in name_of:
            left_out[f"of the category {each['category_id']!r}, which it does not list,"] += 1
        elif each["image_id"] not in known:
            left_out["of images that it does not list"] += 1
        elif (found := _object(each, name_of[each["category_id"]])) is None:
            left_out["without a box"] += 1
        else:
            objects[each["image_id"]].append(found)
    problems = [
        (name, f"{count} annotation{'s' * (count > 1)} {what} left out")
        for what, count in left_out.items()
    ]
    images: dict[str, RawImage] = {}
    file_of: dict[Id, str] = {}
    shared: dict[Id, set[str]] = defaultdict(set)
    for image in coco["images"]:
        file = find_file(image["file_name"], name, files_of)
        if file is None:
            problems.append((image["file_name"], "its file is not there"))
            continue
        if file_of.setdefault(image["id"], file) != file:
            shared[image["id"]] |= {file, file_of[image["id"]]}
            continue
        own = objects.pop(image["id"], [])
        if file in images:
            problems.append((file, f"it is listed twice in {name}"))
            images[file].objects.extend(own)
            continue
        size = (image.get("height") or 0, image.get("width") or 0)
        try:
            if not all(size):
                size = size_of_file(place.root / file, place.options.max_image_pixels)
        except BadImage as error:
            problems.append((file, str(error)))
            continue
        if min(size) < 1 or size[0] * size[1] > place.options.max_image_pixels:
            problems.append((file, f"its size in {name} is {size[1]} x {size[0]}"))
        else:
            images[file] = RawImage(file, size, own)
    for number, files in shared.items():
        for file in files:
            images.pop(file, None)
            problems.append((file, f"its id {number!r} in {name} is another image's, too"))
    return list(images.values()), problems


def _object(each: Annotation, name: str) -> RawObject | None:
    """None of an annotation that says no place."""
    shape, box = each.get("segmentation") or None, each.get("bbox")
    if isinstance(shape, list):
        shape = [each for each in shape if len(each) >= 6 and len(each) % 2 == 0] or None
    if box is None or len(box) != 4:
        if shape is None:
            return None
        corners = extent(shape)
    else:
        left, top, width, height = box
        corners = (left, top, left + width, top + height)
    return RawObject(name, corners, shape, each.get("area"), bool(each.get("iscrowd")))
