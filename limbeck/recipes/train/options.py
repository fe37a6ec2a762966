"""The options of segment and detect, and those of them that studies have."""

from pathlib import Path
from typing import Annotated, Literal

import tyro

from limbeck.config import BatchSize, PositiveFloat, Rate, Side, Width, options
from limbeck.data.scenes.objects.options import ObjectOptions, ObjectViewOptions
from limbeck.data.scenes.options import SceneOptions, SceneViewOptions
from limbeck.engine.options import POSITIONS_AND_TOKENS, OptimOptions, TrainOptions
from limbeck.evaluation.options import MapOptions
from limbeck.methods import PerBoxMethodOptions, PerMapMethodOptions
from limbeck.models.options import DetectorOptions, SegmenterOptions, TeacherOptions
from limbeck.recipes.run.options import TrainingOptions


@options
class MapTuningOptions:
    """How a network is trained to segment. Defaults: the recipe of TinyMIM, MAE-Lite and G2SD, but
    for the light head and the length, and without drop path."""

    img_size: Side | None = None
    """Side of the crops that it is trained on, in pixels (published: 512); the student's own image
    size if not given."""
    class_weights: tuple[PositiveFloat, ...] = ()
    """Weights of the classes in the loss, one each; all alike if not given."""
    mean: Literal["valid", "all"] = "valid"
    """Over which pixels the loss is averaged: those with a class, or all, as published, where the
    others count as 0."""
    decay_positions: bool = False
    """Decay positions and learnt tokens, too, as published (where it is not meant)."""
    drop_path_rate: Rate = 0.0
    """Stochastic depth, rising linearly from 0 in the first block to this in the last; published:
    0.1."""

    segmenter: SegmenterOptions = SegmenterOptions()
    views: SceneViewOptions = SceneViewOptions()
    optim: OptimOptions = OptimOptions(
        base_lr=1.6e-3,
        schedule="poly",
        cosine_from="start",
        betas=(0.9, 0.999),
        layer_decay=0.8,
        no_decay_names=POSITIONS_AND_TOKENS,
    )
    train: TrainOptions = TrainOptions(epochs=100, global_batch_size=16)


@options
class TaughtMapOptions(PerMapMethodOptions, MapTuningOptions):
    """Likewise, and how a teacher helps."""

    method: str = "channel-wise"
    """How a teacher helps: channel-wise (G2SD), pixel-kl, or your own as module:Class."""
    method_options: tuple[str, ...] = ()
    """Options of your own method, such as beta=2.0 (values as in TOML)."""


@options
class SegmentConfig(TaughtMapOptions, TrainingOptions):
    """Fine-tune a student (or any encoder) to segment images, with a segmentation teacher if one is
    named.

    Defaults: the recipe of TinyMIM, MAE-Lite and G2SD, but for the light head and the length, and
    without drop path.
    """

    student: Annotated[str, tyro.conf.arg(aliases=["-s"])] = ""
    """A run's folder, a weights file, timm:NAME, hf:NAME, or a bare timm name (vit_tiny): from
    scratch."""
    out: Path = Path("runs/segment")
    """Folder of the run: checkpoints, logs, and at the end the finished segmenter."""
    num_heads: Width | None = None
    """Head count of all blocks; the student's own, adapted last block included, if not given."""

    teacher: TeacherOptions = TeacherOptions()
    data: SceneOptions = SceneOptions(holdout_ratio=0.2)
    evaluation: MapOptions = MapOptions()


@options
class ShownBoxOptions:
    """How held-out images are shown to a detector."""

    batch_size: BatchSize = 8


@options
class DetectConfig(PerBoxMethodOptions, TrainingOptions):
    """Fine-tune a student (or any encoder) to find objects, with a detector as teacher if one is
    named.

    Defaults: a light head, for small sets and short trainings.
    """

    student: Annotated[str, tyro.conf.arg(aliases=["-s"])] = ""
    """A run's folder, a weights file, timm:NAME, hf:NAME, or a bare timm name (vit_tiny): from
    scratch."""
    out: Path = Path("runs/detect")
    """Folder of the run: checkpoints, logs, and at the end the finished detector."""
    img_size: Side | None = 288
    """Side of the squares that images are fitted into, in pixels; published: 640, 1024."""
    num_heads: Width | None = None
    """Head count of all blocks; the student's own, adapted last block included, if not given."""
    class_weights: tuple[PositiveFloat, ...] = ()
    """Weights of the classes in the loss, one each; all alike if not given."""
    drop_path_rate: Rate = 0.0
    """Stochastic depth, rising linearly from 0 in the first block to this in the last; published:
    0.1 (G2SD), 0 (MAE-Lite)."""
    method: str = "dense-answers"
    """How a teacher helps: dense-answers (light heads), feature-richness (G2SD), or your own as
    module:Class."""
    method_options: tuple[str, ...] = ()
    """Options of your own method, such as beta=2.0 (values as in TOML)."""

    teacher: TeacherOptions = TeacherOptions()
    data: ObjectOptions = ObjectOptions(holdout_ratio=0.2)
    detector: DetectorOptions = DetectorOptions()
    views: ObjectViewOptions = ObjectViewOptions()
    optim: OptimOptions = OptimOptions(
        base_lr=2.4e-2,
        betas=(0.9, 0.999),
        no_decay_names=POSITIONS_AND_TOKENS,
        clip_grad=5.0,
    )
    train: TrainOptions = TrainOptions(epochs=100, global_batch_size=16, ema_decay=0.999)
    evaluation: ShownBoxOptions = ShownBoxOptions()
