"""Published layouts that lack, add or bend tensors, odd grids and heads, cut decoders, presets."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from tests.campaign.hostile import Hostile
from tests.models.origins import writers

Weights = dict[str, Tensor]
TINY = (
    *("--student.name", "vit_tiny", "--student.embed-dim", "24", "--student.depth", "2"),
    *("--student.num-heads", "2", "--student.img-size", "16", "--student.patch-size", "8"),
)
QUICK = (
    *("--data.num-workers", "0", "--train.precision", "fp32", "--train.epochs", "1"),
    *("--train.global-batch-size", "4", "--optim.warmup-epochs", "0"),
)


def without(weights: Weights, *starts: str) -> Weights:
    return {name: value for name, value in weights.items() if not name.startswith(starts)}


def classifier(width: int = 192) -> Weights:
    head = {"head.weight": torch.rand(5, width), "head.bias": torch.rand(5)}
    return writers.mae_encoder(width) | head


def on_class_token(norm: str = "norm") -> Weights:
    second = {"head_dist.weight": torch.rand(5, 192), "head_dist.bias": torch.rand(5)}
    norms = {f"{norm}.weight": torch.rand(192), f"{norm}.bias": torch.rand(192)}
    return writers.fine_tuned(192) | second | norms


def rows(weights: Weights, num: int) -> Weights:
    return weights | {"pos_embed": torch.rand(1, num, weights["pos_embed"].shape[-1])}


# name: (what is written, what the command line says besides, the exit codes, what is said)
FILES: dict[str, tuple[Callable[[], object], tuple[str, ...], tuple[int, ...], str]] = {
    # heads
    "class-token-of-mae-lite": (
        lambda: writers.in_mae_lite(classifier()), (), (0,), "Its 12 heads",
    ),
    "class-token-without-entries": (classifier, (), (0,), "pass num_heads=12"),
    "heads-that-do-not-divide": (classifier, ("--num-heads", "7"), (2,), "divisible"),
    "more-heads-than-channels": (classifier, ("--num-heads", "193"), (2,), "divisible"),
    "heads-of-a-table-and-others": (
        lambda: writers.with_relative(writers.fine_tuned(192)), ("--num-heads", "5"), (2,), "",
    ),
    "unknown-width": (lambda: writers.mae_encoder(40), (), (2,), "name it"),
    "huge-width-of-mae-lite": (
        lambda: writers.in_mae_lite(classifier(1024)), (), (2,), "name it",
    ),
    # second heads
    "second-head-on-the-class-token": (on_class_token, (), (2,), "no plain ViT"),
    "second-head-without-a-bias": (
        lambda: without(on_class_token(), "head_dist.bias"), (), (2,), "head_dist.bias",
    ),
    "second-head-without-a-norm": (
        lambda: without(on_class_token(), "norm."), (), (2,), "head_dist",
    ),
    "second-head-with-two-norms": (
        lambda: on_class_token() | without(on_class_token("dist_norm"), "fc_norm"), (), (2,),
        "Two tensors would both be",
    ),
    "second-head-of-other-classes": (
        lambda: on_class_token() | {"head_dist.weight": torch.rand(7, 192)}, (), (2,), "head_dist",
    ),
    "distillation-token-without-a-head": (
        lambda: without(writers.encoder_of_deit(), "head_dist."), (), (2,), "head_dist",
    ),
    "distillation-token-in-odd-rows": (
        lambda: rows(writers.encoder_of_deit(), 21), (), (2,), "21 rows",
    ),
    # BEiT's names
    "tables-in-one-block-alone": (
        lambda: without(
            writers.with_relative(writers.fine_tuned(192)), "blocks.1.attn.relative_position_bias"
        ), (), (2,), "missing",
    ),
    "tables-of-two-head-counts": (
        lambda: writers.with_relative(writers.fine_tuned(192))
        | {"blocks.1.attn.relative_position_bias_table": torch.rand(52, 6)}, (), (2,), "",
    ),
    "tables-with-no-axis": (
        lambda: writers.with_relative(writers.fine_tuned(192))
        | {"blocks.0.attn.relative_position_bias_table": torch.tensor(1.0)}, (), (2,), "",
    ),
    "tables-of-no-grid": (
        lambda: writers.with_relative(writers.fine_tuned(192))
        | {f"blocks.{k}.attn.relative_position_bias_table": torch.rand(50, 12) for k in (0, 1)},
        (), (2,), "",
    ),
    "indices-in-another-order": (
        lambda: writers.with_relative(writers.fine_tuned(192))
        | {"blocks.0.attn.relative_position_index": writers.relative_index(4).T.contiguous()},
        (), (2,), "not BEiT's order",
    ),
    "indices-with-no-axis": (
        lambda: writers.with_relative(writers.fine_tuned(192))
        | {"blocks.0.attn.relative_position_index": torch.tensor(3)}, (), (2,), "",
    ),
    "layer-scale-in-one-block": (
        lambda: writers.in_mae_lite(classifier() | {"blocks.0.gamma_1": torch.rand(192)}),
        (), (2,), "",
    ),
    "biases-apart-in-one-block": (
        lambda: writers.in_mae_lite(
            {n: v for n, v in writers.with_separate_bias(classifier()).items()
             if not n.startswith("blocks.1.attn.q_bias")}
        ), (), (2,), "missing",
    ),
    # grids
    "thirteen-rows": (lambda: rows(classifier(), 13), (), (2,), "img_size"),
    "no-rows": (lambda: rows(classifier(), 0), (), (2,), ""),
    "one-row": (lambda: rows(classifier(), 1), (), (2,), ""),
    "positions-with-two-axes": (
        lambda: classifier() | {"pos_embed": torch.rand(17, 192)}, (), (2,), "another form",
    ),
    "positions-of-another-width": (
        lambda: classifier() | {"pos_embed": torch.rand(1, 17, 96)}, (), (2,), "pos_embed is",
    ),
    "patches-that-are-no-square": (
        lambda: classifier() | {"patch_embed.proj.weight": torch.rand(192, 3, 8, 4)}, (), (2,), "",
    ),
    "patches-of-no-pixels": (
        lambda: classifier() | {"patch_embed.proj.weight": torch.rand(192, 3, 0, 0)}, (), (2,), "",
    ),
    "patches-of-four-colours": (
        lambda: classifier() | {"patch_embed.proj.weight": torch.rand(192, 4, 8, 8)}, (), (2,), "",
    ),
    # blocks
    "block-number-of-a-million": (
        lambda: classifier() | {"blocks.1000000.norm1.weight": torch.ones(192)}, (), (2,), "",
    ),
    "block-number-that-is-no-ascii": (
        lambda: classifier() | {"blocks.²².norm1.weight": torch.ones(192)}, (), (2,), "",
    ),
    "a-block-without-its-end": (
        lambda: without(classifier(), "blocks.1.mlp"), (), (2,), "blocks.1.mlp.fc1.bias",
    ),
    "mlp-of-no-width": (
        lambda: classifier() | {"blocks.0.mlp.fc1.weight": torch.rand(0, 192)}, (), (2,), "",
    ),
    "mlp-that-differs-by-block": (
        lambda: classifier() | {"blocks.1.mlp.fc1.weight": torch.rand(96, 192)}, (), (2,), "",
    ),
    "names-of-nothing": (lambda: {"": torch.rand(1), ".": torch.rand(1)}, (), (2,), "layout"),
    # converted where it can't be
    "a-mean-pooled-classifier": (lambda: writers.fine_tuned(192), (), (2,), "no place for fc_norm"),
    "heads-of-the-last-block": (lambda: writers.tinymim(192), (), (2,), "--num-heads 6"),
    "heads-of-the-last-block-as-asked": (
        lambda: writers.tinymim(192), ("--num-heads", "6"), (0,), "Its 6 heads",
    ),
    "a-vit-in-tiny-vit-s-layout": (classifier, ("--layout", "tiny-vit"), (2,), "TinyViT"),
}  # fmt: skip
DECODERS: dict[str, tuple[tuple[str, ...], tuple[int, ...], str]] = {
    "of-its-last-block": (("decoder_blocks.7.",), (0,), "released ones 512 wide have 8"),
    "of-an-inner-block": (("decoder_blocks.3.",), (2,), "decoder_blocks.3"),
    "of-all-blocks": (("decoder_blocks.",), (2,), "its blocks missing"),
    "of-its-norm": (("decoder_norm.",), (2,), "decoder_norm.bias"),
    "of-its-pixels": (("decoder_pred.",), (2,), "decoder_pred.weight"),
    "of-its-start": (("decoder_embed.",), (2,), "does not fit"),
    "of-its-positions": (("decoder_pos_embed",), (2,), "decoder_pos_embed"),
    "of-its-mask-token": (("mask_token",), (2,), "mask_token"),
    "of-half-a-block": (("decoder_blocks.7.mlp",), (2,), "decoder_blocks.7.mlp"),
}


def inputs(folder: Path) -> Iterator[Hostile]:
    torch.manual_seed(0)
    for name, (write, words, exits, says) in FILES.items():
        file = folder / f"{name}.pth"
        torch.save(write(), file)
        yield Hostile(name, ("convert", str(file), str(folder / f"{name}_mae.pth"), *words),
                      exits, says)  # fmt: skip
        yield Hostile(f"{name}, inspected", ("inspect", str(file)), (0, 2))
    whole = writers.mae_full(192, 512, 8)
    for name, (starts, exits, says) in DECODERS.items():
        file = folder / f"decoder-cut-{name}.pth"
        torch.save({"model": without(whole, *starts)}, file)
        to = str(folder / f"decoder-cut-{name}_full.pth")
        yield Hostile(
            f"decoder cut {name}", ("convert", str(file), to, "--layout", "mae-full"), exits, says
        )
    cut, states = without(whole, "decoder_blocks.7."), {"decoder_depth": "8", "num_heads": "3"}
    save_file(cut, folder / "states.safetensors", states)
    said = {"num_heads": "-1", "decoder_num_heads": "9" * 30, "decoder_depth": "²"}
    save_file(whole, folder / "odd.safetensors", said)
    for name, exits, says in (("states", (2,), "states 8 blocks and has 7"), ("odd", (2,), "")):
        source, to = folder / f"{name}.safetensors", str(folder / f"{name}_full.pth")
        words = ("convert", str(source), to, "--layout", "mae-full")
        yield Hostile(f"what a file {name} of its decoder", words, exits, says)
    sound = folder / "sound.pth"
    torch.save(classifier(), sound)
    for suffix in (".onnx", ".bin", "", ".pth.tar", ".PTH"):
        yield Hostile(
            f"converted to '{suffix}'", ("convert", str(sound), str(folder / f"to{suffix}")), (2,)
        )
    yield Hostile("converted to a folder", ("convert", str(sound), str(folder)), (2,))
    photos = _photos(folder / "photos")
    tune = ("finetune", "--data", str(photos), "--out", str(folder / "run"), *QUICK)
    shape = "vit_tiny:embed_dim=24:depth=1:num_heads=2:patch_size=8:img_size=16"
    own = (*tune, "--student", shape)
    for name, words, says in (
        ("mixing of one", (*own, "--train.accumulate-steps", "4"), "nothing would be mixed"),
        ("layer scale alone", (*own, "--layer-scale", "0.1"), "without --rel-pos"),
        ("layer scale below 0", (*own, "--rel-pos", "qv-bias", "--layer-scale", "-1"), ""),
        ("heads of a preset that do not divide", (*own, "--preset", "mae_lite_finetune_rpe",
                                                  "--num-heads", "7"), "divide"),
        ("a preset of another verb", (*own, "--preset", "swin_48_simmim"), "distill"),
        ("a preset that is none", (*own, "--preset", "swin_48_fintune"), "swin_48_finetune"),
        ("a preset that is a folder", (*own, "--preset", str(folder / "photos")), "no preset"),
    ):  # fmt: skip
        yield Hostile(name, words, (2,), says)
    distil = ("distill", "--data", str(photos), "--out", str(folder / "run2"), *QUICK, *TINY)
    yield Hostile("a fine-tuning's preset", (*distil, "--preset", "swin_48_finetune"), (2,))
    yield Hostile(
        "no decoder to learn from",
        (*distil, "--method", "decoder-feature", "--teacher", str(sound)), (2,), "has no decoder",
    )  # fmt: skip


def _photos(folder: Path) -> Path:
    for name in ("cat", "dog"):
        (folder / name).mkdir(parents=True)
        for index in range(8):
            pixels = np.full((16, 16, 3), 15 * index, np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{index}.png")
    return folder
