"""``limbeck convert-targets``: soft labels in TinyViT's released layout as a target store.

The layout is that of the released code of arXiv 2207.10666.
"""

import shlex
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Literal

import pydantic
import tyro

from limbeck.config import options
from limbeck.data.options import DataOptions
from limbeck.errors import UserError
from limbeck.recipes.run import checks

UNKNOWN = "unknown teacher, released layout"
HEEDED = {"root", "split", "image_column", "label_column", "max_image_pixels"}
"""What of ``DataOptions`` matters here: the images are looked up and not trained on."""


@options
class ConvertTargetsConfig:
    """Turn soft labels in TinyViT's released layout (arXiv 2207.10666) into a store.

    limbeck distill --targets then makes the released views again, from the seeds of the records.
    """

    source: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RELEASED")] = ""
    """The folder that holds logits_top100_epoch0 and so on."""
    out: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="STORE")] = ""
    """The store: a folder, or an address such as s3://bucket/store."""
    num_classes: Annotated[
        Annotated[int, pydantic.Field(gt=1, le=2**20)] | None, tyro.conf.arg(aliases=["--classes"])
    ] = None
    """Classes of the teacher, which the layout does not tell: 21841 of ImageNet-22k."""
    keys: Literal["names", "positions"] | None = None
    """What the keys are: names of images (or ends of names), or positions in their listing. Has to
    be said where they are numbers, which may be either."""
    listing: Literal["folder", "tar"] | None = None
    """With --keys positions: what the soft labels were saved from. The released code lists a folder
    by name (x_10 before x_2) and a .tar by number (x_2 before x_10). Has to be said where the two
    differ."""
    teacher: str = ""
    """The teacher, if you know it, for the record; the layout does not tell."""

    data: DataOptions = DataOptions()


@dataclass(frozen=True)
class Converted:
    """What a call of ``convert_targets`` left behind."""

    address: str
    num_images: int
    num_views: int
    num_kept: int
    num_new: int
    num_unknown: int
    """Keys that no image has."""
    num_without: int
    """Images that lack the record of some view, or of all."""


def check(config: ConvertTargetsConfig) -> None:
    """All that can be wrong without opening a file; raises UserError."""
    if not config.source or not config.out:
        raise UserError(
            "A released set and a store are needed; run: limbeck convert-targets RELEASED STORE "
            "--data IMAGES --classes 21841."
        )
    checks.check_path(config.source, "limbeck convert-targets")
    if config.num_classes is None:
        raise UserError(
            "The released layout does not tell how many classes its teacher has; pass --classes "
            "(21841 of ImageNet-22k, 1000 of ImageNet-1k)."
        )
    if config.listing is not None and config.keys != "positions":
        raise UserError("listing has no effect without --keys positions; leave it out.")
    checks.check_data(config.data)
    for field in fields(DataOptions):
        if field.name not in HEEDED and getattr(config.data, field.name) != field.default:
            raise UserError(
                f"data.{field.name} has no effect on a conversion, which takes all images; leave "
                "it out."
            )


def convert_targets(config: ConvertTargetsConfig) -> Converted:
    """Write the store, or what is left of it.

    Raises UserError for a set that is incomplete, damaged or of other images, RunError where
    writing fails; what is finished is kept.
    """
    check(config)
    from limbeck.data.open import open_source
    from limbeck.data.released_logits import ReleasedLogits
    from limbeck.data.released_views import check_streams
    from limbeck.recipes.targets.released import Conversion, find_images, find_records

    assert config.num_classes is not None
    check_streams()
    released = ReleasedLogits(Path(config.source).expanduser(), config.num_classes)
    source = open_source(config.data.root, config.data, config.data.split)
    keys = list(released.keys(0))
    index_of = find_images(source, keys, config.keys, config.listing)
    places = find_records(released, index_of, len(source))
    taken_for = "positions in a tar" if config.listing == "tar" else config.keys or "names"
    conversion = Conversion(
        released, source, config.data, places, config.teacher or UNKNOWN, taken_for
    )
    num_new = conversion.write(config.out)
    return Converted(
        address=config.out,
        num_images=len(source),
        num_views=released.num_views,
        num_kept=released.num_kept,
        num_new=num_new,
        num_unknown=len(keys) - len(index_of),
        num_without=int((places < 0).any(axis=0).sum()),
    )


def report(done: Converted) -> str:
    """What to do with the store, for the command line."""
    store = shlex.quote(done.address)
    lines = [
        f"The soft labels of {done.num_images - done.num_without:,} images (top {done.num_kept} of "
        f"{done.num_views} views each) are in {done.address} ({done.num_new:,} of them new).",
        "Their views are those of the released code, of which about 0.15 % differ: where it kept "
        "no bit of the colours, which Pillow has come to refuse, one is kept.",
        "Whether mixup or cutmix was on while they were saved the layout does not tell; if it was, "
        "they are of mixed images, and don't fit these.",
        f"Train from it:  limbeck distill --method sparse-logit --targets {store} --data IMAGES",
    ]
    if done.num_without:
        lines.insert(
            1,
            f"{done.num_without:,} images have no record, or not one of each view; trainings "
            "leave them out.",
        )
    if done.num_unknown:
        lines.insert(1, f"{done.num_unknown:,} keys are of no image here.")
    return "\n".join(lines)
