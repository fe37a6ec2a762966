"""Options of images with objects, and of how they are shown (no torch here)."""

from typing import Annotated, Literal

import pydantic

from limbeck.config import Probability, options
from limbeck.data.options import DataOptions
from limbeck.data.scenes.options import Factors, Hue, Shift, check_merges


@options
class ObjectOptions(DataOptions):
    """Where images with annotated objects come from. All of it is found by looking; see
    docs/objects.md."""

    eval_split: str = "validation"
    """Split of eval_root, or of root where it has several: train-*, val and so on."""
    layout: Literal["auto", "coco", "yolo", "voc", "table"] = "auto"
    """How images and annotations lie; found by looking if auto."""
    box_format: Literal["xywh", "xyxy", "cxcywh", "relative-xyxy", "relative-cxcywh"] | None = None
    """What the four numbers of a box are, where the layout does not say (a table's): left, top and
    size (xywh, COCO's), corners (xyxy), centre and size (cxcywh); relative to the image's size."""
    class_names: tuple[str, ...] = ()
    """Names of the classes 0, 1, ... where the layout has none."""
    merge: tuple[str, ...] = ()
    """Classes made one: vehicle=car,truck,bus; or none: ignore=void."""
    broken: Literal["skip", "refuse"] = "skip"
    """What to do with boxes outside their image or without area, images that are not there or
    listed twice, annotations of unknown images."""

    def __post_init__(self) -> None:
        check_merges(self.merge)


@options
class ObjectViewOptions:
    """How an image and its objects become a square of a batch. Defaults: for small sets and short
    trainings; published: large-scale jitter, presets/vitdet_*.toml."""

    scale: Factors = (0.6, 1.6)
    """The image is resized so that it fits into the square times a number drawn uniformly from
    these limits (published: 0.1 to 2)."""
    crop: Literal["free", "tied"] = "free"
    """Where a larger image is cut: both offsets drawn on their own, or one number for both, as
    published, so that crops lie on the diagonal."""
    min_visible: Annotated[float, pydantic.Field(ge=0, lt=1)] = 0.1
    """Objects of which less than this share of the area is left by the crop are left out."""
    flip_prob: Probability = 0.5
    vertical_flip_prob: Probability = 0.0
    """For images without an up and down, such as those of microscopes and satellites."""
    mosaic_prob: Probability = 0.0
    """Instead of one image four, each in a quarter, around a centre that is drawn."""
    mosaic_epochs: Annotated[float, pydantic.Field(ge=0, le=1)] = 0.85
    """Mosaics end after this share of the training."""
    distort_prob: Probability = 0.5
    """Of each of brightness, contrast, saturation and hue, on its own (published: 0)."""
    brightness: Shift = 32.0
    """Added: up to this much, of 255, up or down."""
    contrast: Factors = (0.5, 1.5)
    saturation: Factors = (0.5, 1.5)
    hue: Hue = 18
    """Turned: whole numbers from minus this to below it, of 180 for the circle."""
