"""Options of data and views (no torch here, see ``limbeck.config``)."""

from typing import Annotated, Literal

import pydantic
import tyro

from limbeck.config import options

Probability = Annotated[float, pydantic.Field(ge=0, le=1)]
NotNegative = Annotated[float, pydantic.Field(ge=0)]


@options
class DataOptions:
    """Where images come from and what is done about bad ones."""

    root: Annotated[str, tyro.conf.arg(aliases=["--data"])] = ""
    """A folder of images (class sub-folders are labels), a .parquet file or a folder of them, .tar
    shards (a file, a folder, or a pattern like shards-{000..009}.tar), or hf:NAME for a hub data set."""
    eval_root: str = ""
    """Held-out images for probes and scores; a slice of root is held out if not given."""
    split: str = "train"
    """Split of a hub data set."""
    eval_split: str = "test"
    """Split of the hub data set in eval_root."""
    image_column: str | None = None
    """Image column of a table; found by its type if not given."""
    label_column: str | None = None
    """Label column of a table; found by its type if not given."""
    holdout_ratio: Annotated[float, pydantic.Field(ge=0, lt=1)] = 0.05
    """Part of root held out for probes, chosen by a hash of each key."""
    max_holdout: Annotated[int, pydantic.Field(ge=0)] = 5000
    """At most this many images are held out."""
    num_workers: Annotated[int, pydantic.Field(ge=0)] | None = None
    """Loader processes per rank; one less than this rank's share of the cores if not given."""
    max_bad_ratio: Probability = 0.01
    """The run stops when a larger part of the images can't be read."""
    max_image_pixels: Annotated[int, pydantic.Field(gt=0, le=178_000_000)] = 89_478_485
    """Larger images are skipped (decompression bombs). The default is Pillow's own warning limit."""


@options
class ViewOptions:
    """How a view is made of an image. Defaults: TinyMIM's pre-training (fact sheet 1.8)."""

    scale: tuple[float, float] = (0.2, 1.0)
    """Area of the random crop as a part of the image."""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Aspect of the random crop, drawn log-uniformly."""
    flip_prob: Probability = 0.5
    color_jitter: tuple[NotNegative, NotNegative, NotNegative] = (0.0, 0.0, 0.0)
    """Brightness, contrast, saturation: factors drawn in 1 +- value, in random order; student only."""
    rand_augment: str | None = None
    """RandAugment in timm's words, such as rand-m9-mstd0.5-inc1."""
    erase_prob: Probability = 0.0
    """Random erasing with normal noise, one box of 2 to 33 % of the area."""
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"


@options
class MixOptions:
    """Mixup and cutmix of a labelled batch, and label smoothing."""

    mixup_alpha: NotNegative = 0.0
    cutmix_alpha: NotNegative = 0.0
    mix_prob: Probability = 1.0
    """Probability that a batch is mixed at all."""
    switch_prob: Probability = 0.5
    """Probability of cutmix where both are on."""
    label_smoothing: Annotated[float, pydantic.Field(ge=0, lt=1)] = 0.0
