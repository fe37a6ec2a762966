"""Tables with a column of images and one of masks: .parquet and .arrow files, and the hub's."""

from dataclasses import replace
from pathlib import Path

from limbeck.data.hub import TableSource, open_hub, open_table
from limbeck.data.scenes.class_table import find_table
from limbeck.data.scenes.layout import Found, Masks
from limbeck.data.scenes.options import SceneOptions
from limbeck.data.scenes.pixels import RawMask, decode_mask
from limbeck.data.source import Source
from limbeck.data.splits import splits_of
from limbeck.errors import UserError

MASK_COLUMNS = (
    "mask", "label", "annotation", "segmentation_mask", "semantic_mask", "segmentation", "labels",
    "masks", "seg", "semantic_segmentation", "semantic", "gt", "ground_truth", "target",
)  # fmt: skip


class SourceMasks(Masks):
    """Masks that a source reads as it does images."""

    def __init__(self, source: Source, max_image_pixels: int, what: str) -> None:
        self.source, self.max_image_pixels, self.what = source, max_image_pixels, what

    def read(self, index: int) -> RawMask:
        return decode_mask(self.source.read(index).data, self.max_image_pixels)

    def name(self, index: int) -> str:
        """What it is of the sample."""
        return self.what


def find_in_tables(root: str, options: SceneOptions, split: str) -> Found:
    """The rows of a table; label_column, or a usual name, says which column has the masks."""
    is_hub = root.startswith("hf:")
    open_ = open_hub if is_hub else open_table
    images: TableSource = open_(root, replace(options, label_column=""), split)
    column = _mask_column(images.image_columns, options.label_column, root)
    masks = open_(root, replace(options, image_column=column, label_column=""), split)
    folder = Path(root) if Path(root).is_dir() else Path(root).parent
    return Found(
        images=images,
        masks=SourceMasks(masks, options.max_image_pixels, f"its column '{column}'"),
        layout=f"a table with images in '{images.image_columns[0]}' and masks in '{column}'",
        table=None if is_hub else find_table(folder),
        notes=images.notes,
        splits=table_splits(root, is_hub=is_hub),
    )


def _mask_column(columns: tuple[str, ...], asked: str | None, root: str) -> str:
    image, *others = columns
    if asked:
        if asked not in others:
            raise UserError(
                f"The table {root} has no column '{asked}' of masks as images beside '{image}' "
                f"(it has {', '.join(others) or 'none'}); pass another --data.label-column."
            )
        return asked
    usual = [name for name in MASK_COLUMNS if name in others]
    if usual or len(others) == 1:
        return (usual or others)[0]
    raise UserError(
        f"{'More than one' if others else 'No'} column of the table {root} could hold masks beside "
        f"'{image}'{f' ({chr(44).join(others)})' if others else ''}; name it with "
        "--data.label-column."
    )


def table_splits(root: str, *, is_hub: bool) -> tuple[str, ...]:
    """The splits that a folder of tables is of, where it is of several."""
    if is_hub or not Path(root).is_dir():
        return ()
    names = [file.relative_to(root).as_posix() for file in sorted(Path(root).rglob("*"))]
    tables = [name for name in names if name.lower().endswith((".parquet", ".arrow"))]
    return tuple(sorted(set(splits_of(tables)) - {""}))
