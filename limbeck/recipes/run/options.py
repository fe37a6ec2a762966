"""The options of trainings, and of how a network is probed: what every room above reads."""

from pathlib import Path
from typing import Annotated, Literal

import pydantic
import tyro

from limbeck.config import (
    BatchSize,
    Depth,
    Few,
    NotNegative,
    NumThreads,
    PositiveInt,
    Rate,
    Repeats,
    Seed,
    Side,
    Width,
    options,
)
from limbeck.data.options import CropOptions, DataOptions, MixOptions, TargetsOptions, ViewOptions
from limbeck.engine.options import POSITIONS_AND_TOKENS, OptimOptions, TrainOptions
from limbeck.methods import PerMethodOptions, PerTaskMethodOptions
from limbeck.models.options import GlobalPool, HeadKind, RelPos, StudentOptions, TeacherOptions


@options
class CropEvalOptions:
    """How held-out images are shown to the network."""

    crop_ratio: Annotated[float, pydantic.Field(gt=0, le=1)] = 0.875
    """Side of the centre crop as a part of the resized image."""
    batch_size: BatchSize = 64


@options
class EmbedOptions(CropEvalOptions):
    """How an image becomes one vector, for every probe."""

    pool: Literal["mean", "cls"] = "mean"
    """What stands for an image: the mean of its final patch tokens, or its CLS token."""


@options
class ProbeOptions(EmbedOptions):
    """What is measured during the run (train.probe_every says how often)."""

    num_train: PositiveInt = 2000
    """Labelled training images that the probes learn from."""
    num_test: PositiveInt = 2000
    """Held-out images that are scored."""


@options
class LatencyOptions:
    """How latency is measured: a median of turns, in which what is compared alternates."""

    runtime: Literal["auto", "torch", "onnx", "openvino"] = "auto"
    """torch: PyTorch; onnx: ONNX Runtime, openvino: OpenVINO (extra: export), all on the CPU in
    fp32; auto: the first of ONNX Runtime, OpenVINO and PyTorch that is installed."""
    threads: NumThreads = 1
    batch_size: BatchSize = 1
    num_turns: Repeats = 15


@options
class TrainingOptions:
    """What every training has."""

    out: Path = Path("runs/training")
    """Folder of the run: checkpoints, logs, and at the end the finished student."""
    seed: Seed = 0
    """Seed of all that is drawn."""
    overwrite: bool = False
    """Start afresh where the folder holds another run."""

    data: DataOptions = DataOptions()
    optim: OptimOptions = OptimOptions()
    train: TrainOptions = TrainOptions()


@options
class DistillConfig(PerMethodOptions, TrainingOptions):
    """Distil a teacher into a small student on unlabelled images, or pre-train it without one."""

    out: Path = Path("runs/distill")
    method: str = "relation"
    """How the student learns: relation, feature or cls-token (TinyMIM's default and other arms),
    attention-map (D-MAE and D2-MAE), decoder-feature (G2SD), sparse-logit (TinyViT); without a
    teacher masked-pixel (MAE), simmim, moco-v3 or dino; or your own as module:Class."""
    chain: str = ""
    """Students one after the other, each the teacher of the next: vit_base,vit_small,vit_tiny. A
    stage may state its shape: vit_tiny:num_heads=6:depth=10. Each is a run in a folder of out."""
    untrained_tail: Literal["keep", "reinit", "zero"] = "keep"
    """What the method leaves untrained in the student: keep its start values, draw them afresh, or
    zero the block's outputs so that it passes its input through."""
    method_options: tuple[str, ...] = ()
    """Options of your own method, such as beta=2.0 (values as in TOML)."""

    student: StudentOptions = StudentOptions()
    teacher: TeacherOptions = TeacherOptions()
    targets: TargetsOptions = TargetsOptions()
    crop: CropOptions = CropOptions()
    probes: ProbeOptions = ProbeOptions()


@options
class FinetuneConfig(PerTaskMethodOptions, TrainingOptions):
    """Fine-tune a student (or any encoder) to classify images, with a classification teacher if
    one is named.

    Defaults: TinyMIM's recipe for ViT-B, in smaller batches.
    """

    student: Annotated[str, tyro.conf.arg(aliases=["-s"])] = ""
    """A run's folder, a weights file, timm:NAME, hf:NAME, or a bare timm name (vit_tiny): from
    scratch."""
    out: Path = Path("runs/finetune")
    """Folder of the run: checkpoints, logs, and at the end the finished classifier."""
    img_size: Side | None = None
    """Image side in pixels; the student's own if not given (positions are interpolated)."""
    head: HeadKind | None = None
    """single: one classifier; distilled: DeiT's distillation token with a second one;
    distilled-last: G2SD's, last in the sequence, without a position; cls-distilled: MAE-Lite's, the
    class token has the second one; tinymim-star: TinyMIM*'s, wide features for both. The student's
    own kind if not given."""
    global_pool: GlobalPool | None = None
    """avg: mean of the patch tokens and a fresh norm; token: the CLS token. avg if not given, token
    with --head distilled or distilled-last, which have no other."""
    rel_pos: RelPos | None = None
    """MAE-Lite's variant of a plain ViT: biases of relative positions in every block. qkv-bias:
    with the ViT's biases of queries, keys and values (released in 2025); qv-bias: without the
    keys', and the others start at 0 (in 2023)."""
    layer_scale: NotNegative = 0.0
    """With rel_pos, scales of both branches in every block start at this: 0.1 in the release of
    2023; without scales if not given, as in 2025."""
    num_heads: Width | None = None
    """Head count of all blocks; the student's own, adapted last block included, if not given."""
    head_init_std: NotNegative = 2e-5
    """Standard deviation of a fresh classifier's weights (trunc-normal): 2e-5 in MAE's and
    TinyMIM's fine-tuning, 0.02 in MAE-Lite's."""
    dist_head_init_std: NotNegative | None = None
    """Likewise of a second head: 0.02 in G2SD's; head_init_std's if not given."""
    head_index: Path | None = None
    """Start the classifier from the student's own: a file with the old class (counted from 0) of
    each new one, a line each; -1 starts from the mean of those."""
    keep_head: bool = False
    """Go on with the student's own classifier, of the same classes: at a larger image size, say."""
    freeze_batch_norm: bool = False
    """Batch norm goes on with the statistics that it has; its weights and biases are trained."""
    keep_blocks: Few | None = None
    """Only the student's first blocks, so many, are kept; what comes after them starts afresh
    before the fine-tuning. All are kept if not given."""
    q_pool: Depth | None = None
    """How often a Hiera pools; 3 if not given, its pre-training mostly did it twice."""
    drop_path_rate: Rate = 0.2
    """Stochastic depth, rising linearly from 0 in the first block to this in the last."""
    method: str = "logit"
    """How a teacher helps: logit (DeiT), nkd (in place of the labels), or your own module:Class."""
    method_options: tuple[str, ...] = ()
    """Options of your own method, such as beta=2.0 (values as in TOML)."""

    teacher: TeacherOptions = TeacherOptions()

    data: DataOptions = DataOptions(holdout_ratio=0.2)
    views: ViewOptions = ViewOptions(
        scale=(0.08, 1.0), rand_augment="rand-m9-mstd0.5-inc1", erase_prob=0.25
    )
    mix: MixOptions = MixOptions(mixup_alpha=0.8, cutmix_alpha=1.0, label_smoothing=0.1)
    optim: OptimOptions = OptimOptions(
        base_lr=5e-4,
        min_lr=1e-6,
        betas=(0.9, 0.999),
        layer_decay=0.65,
        no_decay_names=(*POSITIONS_AND_TOKENS, "dist_token"),
    )
    train: TrainOptions = TrainOptions(epochs=100)
    evaluation: CropEvalOptions = CropEvalOptions()
