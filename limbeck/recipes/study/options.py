"""The options of studies: compare, two-stage and search."""

from dataclasses import fields, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar

import tyro

from limbeck.config import NotNegative, Rate, Repeats, Seed, options
from limbeck.data.options import (
    CorruptionOptions,
    CropOptions,
    DataOptions,
    LabelFraction,
    MixOptions,
    TargetsOptions,
    ViewOptions,
)
from limbeck.data.scenes.options import SceneOptions
from limbeck.engine.options import AT_THE_END, POSITIONS_AND_TOKENS, OptimOptions, TrainOptions
from limbeck.evaluation.options import MapOptions
from limbeck.methods import PerMethodOptions, PerTaskMethodOptions
from limbeck.models.options import GlobalPool, HeadKind, StudentOptions, TeacherOptions
from limbeck.recipes.run.options import (
    CropEvalOptions,
    DistillConfig,
    EmbedOptions,
    LatencyOptions,
    ProbeOptions,
)
from limbeck.recipes.train.options import MapTuningOptions, TaughtMapOptions

UNTRAINED, SCRATCH = "untrained", "scratch"
BASELINES = (UNTRAINED, SCRATCH)
"""Arms of compare without pre-training: the student at its start, frozen; and fine-tuned from
there."""


TUNING = OptimOptions(
    base_lr=1e-3,
    min_lr=1e-6,
    betas=(0.9, 0.999),
    layer_decay=0.85,
    no_decay_names=POSITIONS_AND_TOKENS,
)


@options
class TuningOptions:
    """The fine-tuning at the end of every arm. Defaults: the light augmentation of MAE-Lite."""

    global_pool: GlobalPool | None = None
    """avg (if not given) or token."""
    drop_path_rate: Rate = 0.0
    views: ViewOptions = ViewOptions(scale=(0.08, 1.0))
    mix: MixOptions = MixOptions(mixup_alpha=0.2)
    optim: OptimOptions = TUNING
    """layer_decay is for pre-trained weights: an arm from scratch has none."""
    train: TrainOptions = TrainOptions(epochs=100, probe_every=AT_THE_END)


@options
class CompareConfig:
    """Pre-train the same student with several methods, on the same images for as many steps, and
    compare them: frozen, and fine-tuned.
    """

    arms: Annotated[tuple[str, ...], tyro.conf.arg(aliases=["--methods"])] = (
        *BASELINES,
        *("masked-pixel", "moco-v3", "dino"),
    )
    """What to compare: methods of limbeck distill or your own module:Class, untrained (the student
    at its start) and scratch (fine-tuned from there). An arm may have a name and options of its
    own: NAME=METHOD,OPTION=VALUE,OPTION. Options are the method's, or begin with optim., crop.,
    teacher. or student.: low=moco-v3,temperature=0.1,optim.base_lr=1e-4. The small weights that
    anybody can download are an arm, too: public=start,student.weights=timm:NAME."""
    seeds: Repeats = 3
    """Runs of each arm, with the seeds 0, 1 and so on."""
    out: Path = Path("runs/compare")
    """Folder of the runs and of table.md and comparison.json."""
    overwrite: bool = False
    """Replace another comparison there."""
    fine_tune: bool = True
    """Also fine-tune every arm, where the images have labels."""
    label_fractions: tuple[LabelFraction, ...] = (1.0,)
    """Fine-tune with each of these parts of the labels; every seed draws its own part."""

    student: StudentOptions = StudentOptions()
    teacher: TeacherOptions = TeacherOptions()
    """For the arms whose method has one."""
    data: DataOptions = DataOptions(holdout_ratio=0.2)
    crop: CropOptions = CropOptions()
    optim: OptimOptions = OptimOptions()
    train: TrainOptions = TrainOptions(probe_every=AT_THE_END)
    """Of the pre-training; without probes on the way, which would count as time."""
    tune: TuningOptions = TuningOptions()
    embed: EmbedOptions = EmbedOptions()


STRONG_VIEWS = ViewOptions(scale=(0.08, 1.0), rand_augment="rand-m9-mstd0.5-inc1", erase_prob=0.25)


STRONG_MIX = MixOptions(mixup_alpha=0.8, cutmix_alpha=1.0, label_smoothing=0.1)


@options
class SpecificOptions(TuningOptions, PerTaskMethodOptions):
    """Stage two, and the fine-tuning of the other arms. Defaults: G2SD's, in smaller
    batches and with a relative warm-up.
    """

    head: HeadKind = "distilled-last"
    """Of the arms with a teacher, as for limbeck finetune; the others have its first classifier."""
    head_init_std: NotNegative = 2e-5
    """Standard deviation of a fresh classifier's weights."""
    dist_head_init_std: NotNegative | None = None
    """Likewise of a second head: 0.02, G2SD's, if not given."""
    method: str = "logit"
    """How the teacher helps, as for limbeck finetune: logit, nkd (of a single head), or your own as
    module:Class."""
    method_options: tuple[str, ...] = ()
    """Options of your own method, such as beta=2.0 (values as in TOML)."""
    views: ViewOptions = STRONG_VIEWS
    mix: MixOptions = STRONG_MIX
    optim: OptimOptions = replace(TUNING, layer_decay=0.75)
    """layer_decay keeps what stage one has learnt: an arm from scratch has none."""
    train: TrainOptions = TrainOptions(epochs=200, probe_every=AT_THE_END)


@options
class TuneTeacherOptions(TuningOptions):
    """The fine-tuning of the teacher. Defaults: MAE's for ViT-B, in smaller batches."""

    drop_path_rate: Rate = 0.1
    views: ViewOptions = STRONG_VIEWS
    mix: MixOptions = STRONG_MIX
    optim: OptimOptions = replace(TUNING, base_lr=5e-4, layer_decay=0.65)


@options
class StagesConfig(PerMethodOptions):
    """What two stages have, whatever the ``task`` of the second."""

    task: ClassVar[str]

    arms: tuple[str, ...] = ("both",)
    """The arms to run: both, generic (stage one, then labels alone), specific (stage two alone,
    from scratch), fine-tune (labels alone, from scratch). All four tell what each stage gives."""
    seeds: Repeats = 1
    """Runs of each arm, with the seeds 0, 1 and so on."""
    out: Path = Path("runs/two_stage")
    """Folder of the runs, of table.md and two_stage.json."""
    overwrite: bool = False
    """Replace other runs there."""
    task_teacher: str | None = None
    """The teacher of stage two, which knows these classes: a run, a weights file, timm:NAME or
    hf:NAME. If not given, --teacher is fine-tuned here, unless it knows them itself."""
    unlabelled: str | None = None
    """Other images for stage one, such as a larger folder without labels; those of --data if not
    given."""
    method: str = "decoder-feature"
    """Stage one's, as for limbeck distill: decoder-feature (G2SD), relation, feature or cls-token
    (TinyMIM), attention-map (D-MAE), masked-pixel (MAE, without a teacher), ..., or your own as
    module:Class."""
    method_options: tuple[str, ...] = ()
    """Options of your own method, such as beta=2.0 (values as in TOML)."""
    measure_speed: bool = True
    """Also measure images per second of each network on this machine."""

    student: StudentOptions = StudentOptions()
    teacher: TeacherOptions = TeacherOptions()
    """Of stage one; and, fine-tuned, of stage two."""
    crop: CropOptions = CropOptions()
    optim: OptimOptions = OptimOptions()
    train: TrainOptions = TrainOptions(probe_every=AT_THE_END)
    """Of stage one, as crop and optim; without probes on the way, which would count as time."""


@options
class TwoStageConfig(StagesConfig):
    """Distil a student without labels (stage one), then with labels and the fine-tuned teacher
    (stage two); compare with one stage alone, and with none.
    """

    task: ClassVar[str] = "classify"

    data: DataOptions = DataOptions(holdout_ratio=0.2)
    specific: SpecificOptions = SpecificOptions()
    tune_teacher: TuneTeacherOptions = TuneTeacherOptions()
    evaluation: CropEvalOptions = CropEvalOptions()
    corruptions: CorruptionOptions = CorruptionOptions()


@options
class SpecificMapOptions(TaughtMapOptions):
    """Stage two, and the fine-tuning of the other arms. Defaults: as of limbeck segment, and G2SD's
    layer decay."""

    optim: OptimOptions = replace(MapTuningOptions().optim, layer_decay=0.65)
    """layer_decay keeps what stage one has learnt: an arm from scratch has none."""
    train: TrainOptions = replace(MapTuningOptions().train, probe_every=AT_THE_END)


@options
class TuneMapTeacherOptions(MapTuningOptions):
    """The fine-tuning of the teacher. Defaults: as of limbeck segment, with crops as large as the
    student's."""

    train: TrainOptions = replace(MapTuningOptions().train, probe_every=AT_THE_END)


@options
class TwoStageSegmentConfig(StagesConfig):
    """Distil a student without labels (stage one), then to segment, by masks and a teacher that
    segments (stage two); compare with one stage alone, and with none.
    """

    task: ClassVar[str] = "segment"

    data: SceneOptions = SceneOptions(holdout_ratio=0.2)
    specific: SpecificMapOptions = SpecificMapOptions()
    tune_teacher: TuneMapTeacherOptions = TuneMapTeacherOptions()
    evaluation: MapOptions = MapOptions()


@options
class LimitOptions:
    """How large the found student may be; at least one. Of the student without a classifier."""

    params: str = ""
    """Parameters, such as 5M; or a part of the seed's, such as 50%."""
    macs: str = ""
    """Multiplications with their addition for one image, such as 1.3G or 50%."""
    latency: str = ""
    """Time of a forward pass on this machine, such as 8ms or 50%."""


@options
class SearchConfig(PerMethodOptions):
    """Contract a student's shape step by step until it is within limits: train slightly smaller
    shapes briefly, go on from the best one. Beside it the seed thinned by width alone is trained.
    """

    out: Path = Path("runs/search")
    """Folder of the runs, of table.md, search.json and pictures, and of the winner."""
    overwrite: bool = False
    """Replace another search there."""
    rounds: Repeats = 4
    """Rounds until the limits hold; in each the limits shrink by the same ratio."""
    factors: tuple[str, ...] = ()
    """What may shrink; all that the family has if not given: of a TinyViT width, embed_dims.0 to .3
    (a stage each), depths.0 to .3, window_sizes.1 to .3, mbconv_expand_ratio, mlp_ratio, head_dim;
    of a plain ViT width, depth, num_heads, mlp_ratio."""
    seeds: Repeats = 1
    """Trainings of each candidate, whose mean counts."""
    seed: Seed = 0
    """Seed of the first of them."""
    inherit: bool = False
    """Candidates start from the weights of the shape that they were contracted from, cut to their
    size, instead of afresh."""
    method: str = "sparse-logit"
    """What candidates are trained with, as for limbeck distill: sparse-logit is TinyViT's."""
    method_options: tuple[str, ...] = ()
    """Options of your own method, such as beta=2.0 (values as in TOML)."""

    limits: LimitOptions = LimitOptions()
    latency: LatencyOptions = LatencyOptions()
    student: StudentOptions = StudentOptions()
    """The seed: what is contracted."""
    teacher: TeacherOptions = TeacherOptions()
    targets: TargetsOptions = TargetsOptions()
    data: DataOptions = DataOptions(holdout_ratio=0.2)
    crop: CropOptions = CropOptions()
    optim: OptimOptions = OptimOptions()
    train: TrainOptions = TrainOptions(epochs=10, probe_every=AT_THE_END)
    """Of each candidate: brief."""
    probes: ProbeOptions = ProbeOptions()
    """How held-out images are scored."""


def training(config: SearchConfig, **changes: Any) -> DistillConfig:
    """The distillation of a candidate: what the search has in common with ``limbeck distill``."""
    shared = {f.name for f in fields(DistillConfig)} & {f.name for f in fields(config)}
    return DistillConfig(**{name: getattr(config, name) for name in shared} | changes)
