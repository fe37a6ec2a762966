"""Cityscapes' folders: leftImg8bit/SPLIT/CITY/ beside gtFine/SPLIT/CITY/, of either kind of ids."""

from pathlib import PurePosixPath

from limbeck.data.folder import FilesSource
from limbeck.data.scenes.layout import FileMasks, Found, Place, split_in
from limbeck.data.scenes.published import CITYSCAPES_IDS, CITYSCAPES_TRAIN_IDS

ENDINGS = {"_labelTrainIds.png": CITYSCAPES_TRAIN_IDS, "_labelIds.png": CITYSCAPES_IDS}
"""Of masks, the first where every image has it."""
IMAGE = "_leftImg8bit"


def find_cityscapes(place: Place) -> Found | None:
    """Images called CITY_000000_000019_leftImg8bit.png with masks CITY_000000_000019_gtFine_*."""
    stems = {name: PurePosixPath(name).stem for name in place.names}
    images = {name: stem.removesuffix(IMAGE) for name, stem in stems.items() if IMAGE in stem}
    is_taken = place.choose(split_in(name) for name in images)
    chosen = [name for name in images if is_taken(split_in(name))]
    best: tuple[str, dict[str, str]] = ("", {})
    for ending in ENDINGS:
        # Of gtFine and gtCoarse the first.
        mask_of: dict[str, str] = {}
        for name in place.names:
            if name.endswith(ending):
                frame = PurePosixPath(name).name.removesuffix(ending).rpartition("_")[0]
                mask_of.setdefault(frame, name)
        both = {name: mask_of[images[name]] for name in chosen if images[name] in mask_of}
        if len(both) > len(best[1]):
            best = ending, both
    ending, mask_of = best
    if not mask_of:
        return None
    kept = list(mask_of)
    return Found(
        images=FilesSource(place.root, kept, (), None),
        masks=FileMasks(place.root, list(mask_of.values()), place.options.max_image_pixels),
        layout=f"Cityscapes, masks *{ending}",
        table=ENDINGS[ending],
        is_certain=True,
        problems=tuple((name, "it has no mask") for name in chosen if name not in mask_of),
        notes=tuple(place.notes),
        splits=tuple(sorted({split for name in images if (split := split_in(name))})),
    )
