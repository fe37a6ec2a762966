"""Options of the loop and the optimiser (no torch here, see ``limbeck.config``)."""

import logging
from collections.abc import Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Annotated, Any, Literal

import pydantic

from limbeck.config import (
    BatchSize,
    Epochs,
    NotNegative,
    NotNegativeInt,
    PositiveFloat,
    PositiveInt,
    Rate,
    options,
)
from limbeck.errors import UserError

log = logging.getLogger("limbeck")

AT_THE_END = 1_000_000_000
"""A ``probe_every``: with the last step only."""

POSITIONS_AND_TOKENS = (
    *("pos_embed", "pos_embed_win", "freqs", "attention_biases"),
    *("cls_token", "reg_token"),
)
"""Last names of what no fine-tuning decays: positions, and tokens that are learnt. TinyViT's biases
of places are among them and BEiT's tables are not, each as published. (DeiT's distillation token is
not decayed either, G2SD's is.)"""


@options
class OptimOptions:
    """The optimiser and its schedule. Defaults: TinyMIM's pre-training, as released.

    Decayed are all parameters of two axes and more, class and mask tokens too, as in TinyMIM's and
    MAE-Lite's pre-training, unless ``no_decay_names`` has them.
    """

    optimizer: Literal["adamw", "sgd"] = "adamw"
    """sgd: with Nesterov's momentum of 0.9; it wants a base_lr some hundred times higher."""
    base_lr: PositiveFloat = 1.5e-4
    """Learning rate per 256 samples; the peak is base_lr * global_batch_size / 256."""
    min_lr: NotNegative = 0.0
    warmup_epochs: NotNegative | None = None
    """Linear warm-up; a twentieth of the epochs if not given (TinyMIM: 15 of 300, 5 of 100).
    A preset's own is as much shorter as the run's epochs are fewer than the preset's."""
    warmup_lr: NotNegative = 0.0
    """Learning rate of the first step, where the warm-up starts."""
    schedule: Literal["cosine", "poly", "steps"] = "cosine"
    """How the rate falls: half a cosine, a straight line (segmentation), in steps (detection)."""
    drop_at: tuple[Rate, ...] = ()
    """Of steps: after which shares of the run it falls to a tenth (published: 8/9 and 26/27)."""
    cosine_from: Literal["warmup-end", "start"] = "warmup-end"
    """Where that begins: after the warm-up, or at the start, so that the rate steps down a little
    at the end of the warm-up (TinyViT), or never quite reaches its peak (poly as published)."""
    weight_decay: NotNegative = 0.05
    betas: tuple[Rate, Rate] = (0.9, 0.95)
    """Of AdamW."""
    eps: PositiveFloat = 1e-8
    """Of AdamW."""
    layer_decay: Annotated[float, pydantic.Field(gt=0, le=1)] = 1.0
    """Learning-rate factor per block from the end; 1 is off."""
    layer_decay_count: Literal["layers", "blocks"] = "layers"
    """layers: the embedding and the head are layers of their own (MAE, BEiT); blocks: they have the
    factors of the first and of the last block, which is 1 (TinyViT)."""
    head_lr_scale: PositiveFloat = 1.0
    """Another factor of what comes after the last block, where layer decay is on. The code released
    for Swin in arXiv 2404.12210 counts it two layers too low: 0.7225 with its layer_decay 0.85."""
    no_decay_names: tuple[str, ...] = ()
    """Parameters without weight decay by last name, besides all 1-D ones. A Swin's recipe has
    relative_position_bias_table among them, BEiT's (and its fine-tuning's default) has not."""
    decay_all: bool = False
    """Decay the 1-D ones (biases and norms), too: MoCo-v3's recipe."""
    clip_grad: PositiveFloat | None = None
    """Largest gradient norm."""

    def __post_init__(self) -> None:
        if (self.schedule == "steps") != bool(self.drop_at):
            raise UserError(
                "optim.drop_at is of optim.schedule steps, which needs it; set both, or neither."
            )
        if self.schedule == "steps" and self.cosine_from == "start":
            raise UserError("optim.cosine_from has no effect on schedule steps; leave it out.")
        if self.head_lr_scale != 1 and self.layer_decay == 1:
            raise UserError("optim.head_lr_scale has no effect without layer_decay; set one.")
        if self.layer_decay_count == "blocks" and self.layer_decay == 1:
            raise UserError("optim.layer_decay_count has no effect without layer_decay; set one.")
        if self.layer_decay_count == "blocks" and self.head_lr_scale != 1:
            raise UserError(
                "optim.head_lr_scale is for a head that is a layer of its own; leave it out, or "
                "set layer_decay_count layers."
            )
        if self.warmup_epochs == 0 and (self.warmup_lr or self.cosine_from == "start"):
            raise UserError(
                "optim.warmup_lr and optim.cosine_from have no effect without warm-up; leave them "
                "out, or set warmup_epochs."
            )

    def warmup_for(self, epochs: float) -> float:
        """Epochs of warm-up in a run of so many epochs."""
        return epochs / 20 if self.warmup_epochs is None else self.warmup_epochs


@options
class TrainOptions:
    """The loop: how long, in what batches and precision."""

    epochs: Epochs = 300.0
    """Passes over the training images."""
    global_batch_size: BatchSize = 256
    """Samples per optimiser step, over all ranks and accumulation steps."""
    accumulate_steps: BatchSize = 1
    """Micro-batches per optimiser step and rank."""
    fit_memory: bool = False
    """As few micro-batches as fit the memory, found by trying a few images before the start: the
    fullest, where images have objects, whose losses are means over a micro-batch."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Autocast type of the student's forward pass; weights and optimiser stay fp32. auto: what is
    fast on this machine, measured at the start; a run that goes on keeps what it was begun in."""
    compile: bool = False
    """torch.compile; pays on GPUs and long runs (see benchmarks/RESULTS.md)."""
    ema_decay: Annotated[float, pydantic.Field(gt=0, lt=1)] | None = None
    """Exponential moving average of the weights; the finished student is then the average."""
    save_every: PositiveInt = 500
    """Steps between checkpoints."""
    probe_every: NotNegativeInt = 0
    """Steps between probes; 0 probes ten times a run."""
    patience: PositiveInt | None = None
    """Stop after so many probes in a row without a better score of the task (top-1, mIoU, AP); the
    finished student is that of the best probe, which so has been chosen by the held-out images."""
    log_every: PositiveInt = 20
    """Steps between lines of metrics.jsonl."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    wandb_project: str | None = None
    """Also log to this Weights & Biases project (extra: wandb)."""


def scale_warmup(config: Any, preset: Any, words: Sequence[str], section: str = "") -> Any:
    """A preset's config with a command line's ``words`` on top: where these ask for fewer epochs
    and state no warm-up, it is as much shorter, and this is said."""
    for each in fields(config):
        own, of_preset = getattr(config, each.name), getattr(preset, each.name)
        if is_dataclass(own) and own != of_preset:
            inner = scale_warmup(own, of_preset, words, f"{section}{each.name}.")
            config = replace(config, **{each.name: inner})
    if not {"train", "optim"} <= {each.name for each in fields(config)}:
        return config
    option = f"--{section}optim.warmup_epochs".replace("_", "-")
    usual, epochs, of_preset = preset.optim.warmup_epochs, config.train.epochs, preset.train.epochs
    is_stated = option in {word.partition("=")[0].replace("_", "-") for word in words}
    if not usual or is_stated or epochs >= of_preset:
        return config
    warmup = usual * epochs / of_preset
    log.info(
        "%s %g: the preset's %g, for %g instead of its %g epochs.",
        option, warmup, usual, epochs, of_preset,
    )  # fmt: skip
    return replace(config, optim=replace(config.optim, warmup_epochs=warmup))
