"""The options of evaluate and analyze."""

from pathlib import Path
from typing import Annotated, Literal

import tyro

from limbeck.config import Few, PositiveFloat, PositiveInt, Repeats, Seed, options
from limbeck.data.options import CorruptionOptions, DataOptions, LabelFraction
from limbeck.recipes.run.options import EmbedOptions

Part = Literal["similarity", "attention", "probing"]
PARTS: tuple[Part, ...] = ("similarity", "attention", "probing")


@options
class EvaluateConfig:
    """Probe students, their teacher and the same student undistilled, and give a verdict."""

    student: Annotated[tuple[str, ...], tyro.conf.arg(aliases=["-s"])] = ()
    """One or more distilled students (runs or files): one per seed of the same recipe."""
    baseline: tuple[str, ...] = ()
    """The same student without distillation, one or more; untrained ones if not given."""
    teacher: str | None = None
    """The teacher, as a reference; needed for unlabelled images."""
    out: Path | None = None
    """Folder for scores.json, table.md and a picture."""
    overwrite: bool = False
    """Replace the scores of another evaluation in that folder."""
    num_labels: tuple[PositiveInt, ...] = (1, 5, 20)
    """Labels per class of the few-label probes."""
    label_draws: Repeats = 5
    """Draws of these labels."""
    k: PositiveInt = 20
    """Neighbours of the kNN classifier."""
    max_train: PositiveInt = 50_000
    """At most this many labelled images to learn probes from."""
    test_on: tuple[str, ...] = ()
    """Further labelled test images, NAME=FOLDER each: of another camera or place, or of ImageNet's
    variants (A, R, Sketch, V2). A set of only some classes is asked among these."""
    real_labels: Path | None = None
    """The JSON file of the ReaL labels of ImageNet's validation images."""
    measure_speed: bool = True
    """Also measure images per second of each network on this machine."""
    device: str = "auto"
    """auto, cpu or cuda."""

    data: DataOptions = DataOptions(holdout_ratio=0.2)
    """holdout_ratio: of images that a student has seen, it is what that student's own run held out,
    unless another one is given."""
    embed: EmbedOptions = EmbedOptions()
    corruptions: CorruptionOptions = CorruptionOptions()


@options
class AnalyzeConfig:
    """Look into networks: similarity of layers, attention, probes of every block, and, with
    --keep-blocks, which pre-trained layers matter.
    """

    runs: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Networks: runs' folders, weights files, timm:NAME, hf:NAME, your own module:function."""
    names: tuple[str, ...] = ()
    """Their names in pictures, one each; those of their folders or files if not given."""
    reference: str | None = None
    """Compare the layers of all with those of this network (one of the runs or another); every pair
    is compared if not given."""
    out: Path = Path("analysis")
    """Folder for analysis.json, analysis.md and the pictures."""
    overwrite: bool = False
    """Replace another analysis in that folder."""
    parts: tuple[Part, ...] = PARTS
    """What is measured."""
    num_images: PositiveInt = 1024
    """At most this many images are shown: held-out ones, or of unlabelled data any."""
    sampling: Literal["random", "stratified"] | None = None
    """How they are drawn: by chance, or as many of each class as of every other; stratified if not
    given, where there are labels."""
    seed: Seed = 0
    """Another seed draws other images."""
    pooled_similarity: bool = False
    """Compare the mean patch token of each image instead of all its patches."""
    cell_px: PositiveFloat | None = None
    """Pixels that a patch counts in the attention distance; its true side if not given. The code
    released with MAE-Lite takes 14 for patches of 16."""
    num_train: PositiveInt = 5000
    """At most this many labelled images to learn probes from."""
    keep_blocks: tuple[Few, ...] = ()
    """Fine-tune with only the first so many blocks kept, for each of these numbers."""
    label_fractions: tuple[LabelFraction, ...] = (1.0,)
    """Each of them with these parts of the labels."""
    num_seeds: Repeats = 1
    """And from so many seeds, for the spread."""
    finetune_preset: str | None = None
    """The recipe of these runs: a preset of limbeck finetune, or a .toml file of its options."""
    finetune_options: tuple[str, ...] = ()
    """What differs from it (or from the defaults), such as train.epochs=20 (values as in TOML)."""
    device: Literal["auto", "cpu", "cuda"] = "auto"

    data: DataOptions = DataOptions(holdout_ratio=0.2)
    embed: EmbedOptions = EmbedOptions()
