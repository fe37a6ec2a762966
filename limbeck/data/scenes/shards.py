"""Tar shards whose samples have a mask beside the image: ``0001.jpg`` and ``0001.seg.png``."""

from pathlib import Path

from limbeck.data.scenes.class_table import find_table
from limbeck.data.scenes.layout import Found, Masks
from limbeck.data.scenes.options import SceneOptions
from limbeck.data.scenes.pixels import RawMask, decode_mask
from limbeck.data.shards import TarSource, open_shards
from limbeck.data.source import Subset
from limbeck.errors import UserError

PARTS = tuple(
    f"{word}.{suffix}"
    for word in ("seg", "mask", "label", "labels", "segmentation", "annotation", "gt", "semantic")
    for suffix in ("png", "bmp", "tif", "tiff")
)


class ShardMasks(Masks):
    """Masks beside images of shards."""

    def __init__(self, source: TarSource, indices: list[int], max_image_pixels: int) -> None:
        self.source, self.max_image_pixels = source, max_image_pixels
        self.images = Subset(source, indices)

    def read(self, index: int) -> RawMask:
        place = int(self.images.indices[index])
        return decode_mask(self.source.read_beside(place), self.max_image_pixels)

    def name(self, index: int) -> str:
        """What it is of the sample."""
        return "the mask beside it"

    def stamp(self, index: int) -> str:
        """Its size."""
        return str(self.source.size_beside(int(self.images.indices[index])))


def find_in_shards(root: str, options: SceneOptions, split: str) -> Found:
    """The samples of shards that have a mask."""
    source = open_shards(root, options, split, PARTS)
    having = [index for index in range(len(source)) if source.has_beside(index)]
    if not having:
        raise UserError(
            f"No sample of the shards {root} has a mask; it is called as its image, and .seg.png: "
            f"{source.key(0).rpartition('.')[0]}.seg.png."
        )
    without = [source.key(index) for index in range(len(source)) if not source.has_beside(index)]
    masks = ShardMasks(source, having, options.max_image_pixels)
    folder = Path(root) if Path(root).is_dir() else Path(root).parent
    return Found(
        images=masks.images,
        masks=masks,
        layout="tar shards with masks beside images",
        table=None if "://" in root else find_table(folder),
        problems=tuple((key, "it has no mask") for key in without),
        notes=source.notes,
    )
