"""Options of scenes and their views (no torch here, see ``limbeck.config``)."""

from typing import Annotated, Literal

import pydantic
import tyro

from limbeck.config import Probability, options
from limbeck.data.options import DataOptions
from limbeck.errors import UserError

RawValue = Annotated[int, pydantic.Field(ge=0, le=65535)]
Side = Annotated[int, pydantic.Field(gt=0, le=2**14)]
Factor = Annotated[float, pydantic.Field(gt=0, le=100)]
Shift = Annotated[float, pydantic.Field(ge=0, le=255)]
Hue = Annotated[int, pydantic.Field(ge=0, le=90)]


@options
class SceneOptions(DataOptions):
    """Where annotated scenes come from, how their masks are to be read, and which classes they
    have. All of it is found by looking; see docs/scenes.md."""

    eval_split: str = "validation"
    """Split of eval_root, or of root where it has several: train-*, val and so on."""
    masks: Annotated[str, tyro.conf.arg(aliases=["--masks"])] = ""
    """The folder of the masks, where it is not found beside the images: a mask has the name of its
    image, or that and an ending such as _mask."""
    layout: Literal["auto", "folders", "ade20k", "cityscapes", "voc", "coco", "table", "shards"] = (
        "auto"
    )
    """How images and masks lie; found by looking if auto. In a table, label_column is the masks'
    column."""
    class_names: tuple[str, ...] = ()
    """Names of the classes 0, 1, ... of the masks, or with their colours: road=128,64,128. Those
    found beside the masks (classes.txt, meta.json and so on) if not given."""
    class_file: str = ""
    """A file of names instead: one a line, with the colour where masks are in colours; or JSON."""
    ignore_values: tuple[RawValue, ...] = ()
    """Values in the masks that are no class, beside 255 (unless that is one of two classes)."""
    ignore_background: bool | None = None
    """Value 0 is no class, and 1 the first; as the layout has it if not given (ade20k: yes)."""
    merge: tuple[str, ...] = ()
    """Classes made one: vehicle=car,truck,bus; or none: ignore=void,border."""
    broken: Literal["skip", "refuse"] = "skip"
    """What to do with an image without a mask, with one of another size, of values that are no
    class, or without a pixel of any."""

    def __post_init__(self) -> None:
        if self.class_names and self.class_file:
            raise UserError("data.class_names and data.class_file name the same; leave one out.")
        check_merges(self.merge)


def check_merges(merge: tuple[str, ...]) -> None:
    """Raise UserError for merges of classes that are none."""
    for entry in merge:
        name, equals, parts = entry.partition("=")
        if not (name.strip() and equals and all(part.strip() for part in parts.split(","))):
            raise UserError(f"data.merge: '{entry}' is not of the form vehicle=car,truck,bus.")


def _check_factors(limits: tuple[float, float]) -> tuple[float, float]:
    if not limits[0] <= limits[1]:
        raise ValueError("the smaller number comes first")
    return limits


Factors = Annotated[tuple[Factor, Factor], pydantic.AfterValidator(_check_factors)]


@options
class SceneViewOptions:
    """How an image and its label map become a square of a batch; defaults: the published recipe of
    TinyMIM, MAE-Lite and G2SD (which is mmsegmentation's)."""

    scale: Factors = (0.5, 2.0)
    """The image is resized by a number drawn uniformly from these limits, times what fits it into
    the box."""
    box: tuple[Side, Side] | None = None
    """Long and short side of the box; 4 and 1 times the crop's side if not given (2048 x 512 for
    512)."""
    max_class_share: Annotated[float, pydantic.Field(gt=0, le=1)] = 0.75
    """Crops in which one class has this share or more are drawn again, up to ten times; 1 takes
    every crop with two classes. (Ignored pixels don't count.)"""
    flip_prob: Probability = 0.5
    distort_prob: Probability = 0.5
    """Of each of brightness, contrast, saturation and hue, on its own."""
    brightness: Shift = 32.0
    """Added: up to this much, of 255, up or down."""
    contrast: Factors = (0.5, 1.5)
    saturation: Factors = (0.5, 1.5)
    hue: Hue = 18
    """Turned: whole numbers from minus this to below it, of 180 for the circle."""
