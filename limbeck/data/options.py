"""Options of data and views (no torch here, see ``limbeck.config``)."""

import re
from typing import Annotated, Literal

import pydantic
import tyro

from limbeck.config import (
    BatchSize,
    NotNegative,
    NotNegativeInt,
    NumWorkers,
    PositiveInt,
    Probability,
    Rate,
    Seed,
    options,
)
from limbeck.errors import UserError, did_you_mean

# In the order of ImageNet-C (arXiv 1903.12261): noise, blur, weather, digital.
# fmt: off
CORRUPTIONS = (
    "gaussian_noise", "shot_noise", "impulse_noise",
    "defocus_blur", "glass_blur", "motion_blur", "zoom_blur",
    "snow", "frost", "fog", "brightness",
    "contrast", "elastic_transform", "pixelate", "jpeg_compression",
)
# fmt: on

LabelFraction = Annotated[float, pydantic.Field(gt=0, le=1)]

# Magnitude, operations, probability, spread and limit of the magnitude, increasing operations.
RAND_AUGMENT = r"^rand(-(m\d+|n\d+|p[01]?\.?\d+|mstd\d+\.?\d*|mmax\d+|inc[01]))*$"


def _check_range(limits: tuple[float, float]) -> tuple[float, float]:
    if not 0 < limits[0] <= limits[1]:
        raise ValueError("two numbers are needed, both above 0, the smaller one first")
    return limits


def _check_scale(limits: tuple[float, float]) -> tuple[float, float]:
    if limits[1] > 1:
        raise ValueError("a crop can't have more than the whole area, 1")
    return _check_range(limits)


def _check_rand_augment(recipe: str | None) -> str | None:
    # TOML has no None, and a preset must be able to leave out what is on by default.
    if recipe and not re.match(RAND_AUGMENT, recipe):
        raise ValueError("an example of timm's words is rand-m9-mstd0.5-inc1")
    return recipe or None


RandAugment = Annotated[str | None, pydantic.AfterValidator(_check_rand_augment)]


@options
class DataOptions:
    """Where images come from and what is done about bad ones."""

    root: Annotated[str, tyro.conf.arg(aliases=["--data"])] = ""
    """The images: a folder (class sub-folders are labels), tables, shards, or a data set of the
    Hugging Face hub. Tables are .parquet or .arrow, shards .tar: a file, a folder or a quoted
    pattern like "shards-{000..009}.tar" or "train-*.parquet"; shards at an fsspec address, too. Of
    the hub: hf:NAME or hf:NAME:CONFIG."""
    eval_root: str = ""
    """Held-out images for probes and scores; a slice of root is held out if not given. It may be
    the same place as root, of which eval_split is then taken."""
    split: str = "train"
    """Split of a hub data set, or of a folder of tables or shards that are called train-*, test-*;
    train+validation takes both."""
    eval_split: str = "test"
    """Split of eval_root, likewise."""
    image_column: str | None = None
    """Image column of a table; found by its type if not given."""
    label_column: str | None = None
    """Label column of a table, "" for none; found by its type or usual name if not given."""
    holdout_ratio: Rate = 0.05
    """Part of root held out for probes, chosen by a hash of each key."""
    max_holdout: NotNegativeInt = 5000
    """At most this many images are held out."""
    label_fraction: LabelFraction = 1.0
    """Part of the labelled training images that is used: the same part of every class, and at least
    one image of each. What is held out stays as it is."""
    label_seed: Seed = 0
    """Another seed draws another part."""
    num_workers: NumWorkers | None = None
    """Loader processes per rank; one less than this rank's share of the cores if not given."""
    max_bad_ratio: Probability = 0.01
    """The run stops when a larger part of the images can't be read."""
    max_image_pixels: Annotated[int, pydantic.Field(gt=0, le=178_000_000)] = 89_478_485
    """Larger images are skipped (decompression bombs). The default is Pillow's warning limit."""


@options
class CropOptions:
    """The random crop and flip, the same for both; defaults: TinyMIM's pre-training."""

    scale: Annotated[tuple[float, float], pydantic.AfterValidator(_check_scale)] = (0.2, 1.0)
    """Area of the random crop as a part of the image."""
    ratio: Annotated[tuple[float, float], pydantic.AfterValidator(_check_range)] = (3 / 4, 4 / 3)
    """Aspect of the random crop, drawn log-uniformly."""
    flip_prob: Probability = 0.5
    interpolation: Literal["bicubic", "bilinear", "random"] = "bicubic"
    """random: one of the two, drawn for each image, as in MAE-Lite's pre-training."""


@options
class ViewOptions(CropOptions):
    """How a whole view is made of an image: crop, flip, and what disturbs the student alone."""

    color_jitter: tuple[NotNegative, NotNegative, NotNegative] = (0.0, 0.0, 0.0)
    """Brightness, contrast, saturation: factors drawn in 1 +- value, in random order."""
    hue_jitter: Annotated[float, pydantic.Field(ge=0, le=0.5)] = 0.0
    """Hue beside them: shifted by up to this part of the colour circle."""
    jitter_prob: Probability = 1.0
    """Probability that colours are jittered at all."""
    gray_prob: Probability = 0.0
    blur_prob: Probability = 0.0
    """Gaussian blur with a deviation of 0.1 to 2 pixels."""
    solarize_prob: Probability = 0.0
    """Values of 128 and above are inverted."""
    rand_augment: RandAugment = None
    """RandAugment in timm's words, such as rand-m9-mstd0.5-inc1; "" (or None) is without."""
    erase_prob: Probability = 0.0
    """Random erasing with normal noise, one box of 2 to 33 % of the area."""

    def __post_init__(self) -> None:
        if self.jitter_prob != 1 and not (any(self.color_jitter) or self.hue_jitter):
            raise UserError("jitter_prob has no effect without color_jitter or hue_jitter.")


@options
class ReleasedViews:
    """The views of TinyViT's released code, of which nothing can be chosen: their seeds come with
    the stored soft labels. See ``limbeck.data.released_views``."""


@options
class PairMixOptions:
    """Mixup and cutmix of images with each other."""

    mixup_alpha: NotNegative = 0.0
    cutmix_alpha: NotNegative = 0.0
    mix_prob: Probability = 1.0
    """Probability that a batch (or a pair) is mixed at all."""
    switch_prob: Probability = 0.5
    """Probability of cutmix where both are on."""

    @property
    def is_on(self) -> bool:
        """Whether anything is mixed."""
        return self.mix_prob > 0 and self.mixup_alpha + self.cutmix_alpha > 0


@options
class MixOptions(PairMixOptions):
    """Mixup and cutmix of a labelled batch, and label smoothing."""

    label_smoothing: Rate = 0.0


@options
class TargetsOptions:
    """Stored answers of a teacher, in its place."""

    source: Annotated[str | None, tyro.conf.arg(aliases=["--targets"])] = None
    """A store that limbeck store-targets wrote: a folder, or an address such as s3://bucket/store.
    The views are then the store's: its seed, its number of views."""
    cache: str | None = None
    """A folder for copies of a store at an address; ~/.cache/limbeck/targets if not given."""

    def __post_init__(self) -> None:
        if self.cache is not None and (self.source is None or "://" not in self.source):
            raise UserError(
                "targets.cache is for a store at an address such as s3://; leave it out."
            )


@options
class StoreOptions:
    """What is stored of each image."""

    num_views: PositiveInt = 1
    """Views of each image, one per epoch of training; a longer training uses them again."""
    top_k: PositiveInt | None = None
    """Class probabilities that are kept of each view; 10 if not given, of more than 1,000 classes
    100 (TinyViT's)."""
    token_dtype: Literal["int8", "bf16"] = "int8"
    """Of stored tokens: int8 with a scale per token, or bf16, twice as large."""
    batch_size: BatchSize = 64
    """Views that the teacher sees at once."""


@options
class CorruptionOptions:
    """Which corruptions (arXiv 1903.12261) test images are shown under. See docs/robustness.md."""

    names: Annotated[tuple[str, ...], tyro.conf.arg(aliases=["--corruptions"])] = ()
    """all (15), none, or some: gaussian_noise, shot_noise, impulse_noise, defocus_blur, glass_blur,
    motion_blur, zoom_blur, snow, frost, fog, brightness, contrast, elastic_transform, pixelate,
    jpeg_compression. None if not given."""
    severities: tuple[Annotated[int, pydantic.Field(ge=1, le=5)], ...] = (1, 2, 3, 4, 5)
    """Of 1 (mild) to 5."""
    num_images: PositiveInt = 1000
    """At most this many test images, as many of each class as of every other."""
    root: str = ""
    """The published files in place of corruptions made here: a folder with CIFAR-10-C's .npy files,
    or ImageNet-C's folders CORRUPTION/SEVERITY/CLASS."""

    def __post_init__(self) -> None:
        known = ("all", "none", *CORRUPTIONS)
        for name in self.names:
            if name not in known:
                raise UserError(
                    f"There is no corruption '{name}'.{did_you_mean(name, known)} "
                    f"Choose all, none, or some of {', '.join(CORRUPTIONS)}."
                )
        if len(self.names) > 1 and {"all", "none"} & set(self.names):
            raise UserError("corruptions.names: all and none stand alone; leave the others out.")
        if not self.severities:
            raise UserError("corruptions.severities are one or more of 1, 2, 3, 4 and 5.")
        if not self.wanted:
            default = type(self).__dataclass_fields__  # type: ignore[attr-defined]
            for name in ("severities", "num_images", "root"):
                if getattr(self, name) != default[name].default:
                    raise UserError(
                        f"corruptions.{name} has no effect without --corruptions all or NAMES."
                    )

    @property
    def wanted(self) -> tuple[str, ...]:
        """The corruptions by name, in the order of the paper."""
        return tuple(name for name in CORRUPTIONS if {name, "all"} & set(self.names))

    @property
    def levels(self) -> tuple[int, ...]:
        """The severities in their order, each once."""
        return tuple(sorted(set(self.severities)))
