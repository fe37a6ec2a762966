"""Students: built and initialised from a seed, and what of them is kept, redrawn or mended."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any, Literal

import timm
import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import DropPath
from timm.models.hiera import Hiera
from timm.models.swin_transformer import SwinTransformer
from timm.models.tiny_vit import TinyVit
from torch import nn

from limbeck.errors import UserError
from limbeck.models.attention import HEAD_MAJOR
from limbeck.models.options import HEAD_DIM, SHAPE, GlobalPool, StudentOptions
from limbeck.models.shapes import (
    check_model_name,
    check_stated,
    is_hierarchical,
    is_tiny_vit,
    narrowed,
    pooling_of,
)
from limbeck.models.timm_encoder import TimmEncoder
from limbeck.models.vit import build_encoder
from limbeck.ops.pos_embed import is_sincos_2d, sincos_2d


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw weights on the CPU from ``seed`` and give the caller's random state back afterwards."""
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed: that would also reseed the GPUs, which nobody gives back.
        torch.default_generator.manual_seed(seed)
        yield


def build_student(
    options: StudentOptions, *, num_classes: int = 0, global_pool: GlobalPool = "token", seed: int
) -> TimmEncoder:
    """A freshly initialised student without drop path; a pure function of its arguments.

    Images are normalised with ImageNet's mean and std. Raises UserError for an unknown name and for
    shapes that do not fit together. ``options.weights`` is for the caller: it knows where weights
    come from.
    """
    name = check_model_name(options.name)
    if "." in name:
        raise UserError(
            f"'{name}' names pre-trained weights: 'timm:{name}' starts from weights, "
            f"'{name.partition('.')[0]}' starts fresh."
        )
    shape = {
        key: getattr(options, key)
        for key in SHAPE
        if key != "q_pool" and getattr(options, key) is not None
    }
    check_stated(options.name, shape)
    if is_tiny_vit(name):
        shape = _split_stages(name, shape)
    shape = narrowed(options.name) | choose_pooling(name, num_classes, options.q_pool) | shape
    if is_hierarchical(name):
        pool = "avg"
    else:
        # Without a classifier nothing is pooled, but timm refuses "token" without a CLS token.
        pool = global_pool if num_classes or _has_cls_token(name) else ""
    architecture = {
        "kind": "timm",
        "name": name,
        "kwargs": shape | {"num_classes": num_classes, "global_pool": pool},
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
    }
    encoder = build_fresh(architecture, {"source": f"fresh, seed {seed}"}, seed)
    set_drop_path(encoder, [0.0] * encoder.facts.depth)
    return encoder


def _split_stages(name: str, shape: dict[str, Any]) -> dict[str, Any]:
    """timm's arguments of a TinyViT: heads by stage for the channels of one, lists for tuples."""
    shape = {key: list(v) if isinstance(v, tuple) else v for key, v in shape.items()}
    head_dim = shape.pop("head_dim", None)
    if head_dim is None and "embed_dims" not in shape:
        return shape
    with torch.device("meta"):
        own = [info["num_chs"] for info in timm.create_model(name).feature_info]
    dims, channels = shape.get("embed_dims", own), head_dim or HEAD_DIM
    if odd := [dim for dim in dims if dim % channels]:
        raise UserError(f"The width {odd[0]} of a stage does not divide by head_dim {channels}.")
    return shape | {"num_heads": [dim // channels for dim in dims]}


def choose_pooling(name: str, num_classes: int, q_pool: int | None) -> dict[str, int]:
    """``pooling_of`` a full name, or as asked. Raises UserError for a model that is no Hiera."""
    pooling = pooling_of(name, num_classes)
    if q_pool is None:
        return pooling
    if not pooling:
        raise UserError(f"q_pool is for a Hiera, and {name} is none; leave it out.")
    return {"q_pool": q_pool}


def build_fresh(architecture: dict[str, Any], origin: dict[str, Any], seed: int) -> TimmEncoder:
    """An encoder started by ``init_student``; a pure function of its arguments."""
    with seeded(seed):
        encoder = build_encoder(architecture, origin)
        init_student(encoder.model)
    return encoder


def init_student(model: nn.Module) -> None:
    """MAE's initialisation of a timm vision Transformer, in place; TinyMIM's too.

    Xavier-uniform for every Linear (a packed qkv as one matrix) and for the patch convolution as a
    flattened matrix, zero biases, the convolution's bias uniform +-1/sqrt(fan-in), cls_token normal
    with std 0.02, and a fixed sin-cos pos_embed that is not trained. What a plain ViT does not have
    (registers, layer scale, rotary tables) stays as timm made it; so does the trained pos_embed of
    a Hiera, and all of a Swin, which SimMIM did not start in another way (both trunc-normal with
    std 0.02), and of a TinyViT (linear layers likewise, convolutions as torch starts them). Draws
    from torch's generator.
    """
    if isinstance(model, SwinTransformer | TinyVit):
        return
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    conv = model.patch_embed.proj
    nn.init.xavier_uniform_(conv.weight.data.view(conv.out_channels, -1))
    if conv.bias is not None:
        bound = conv.weight[0].numel() ** -0.5
        nn.init.uniform_(conv.bias, -bound, bound)
    if isinstance(model, Hiera):
        return
    if model.cls_token is not None:
        nn.init.normal_(model.cls_token, std=0.02)
    if model.pos_embed is not None:
        grid = model.patch_embed.grid_size
        num_prefix_tokens = model.pos_embed.shape[1] - grid[0] * grid[1]
        table = sincos_2d(model.embed_dim, grid, num_prefix_tokens)
        model.pos_embed.data.copy_(table)
        model.pos_embed.requires_grad_(False)


def describe_positions(encoder: TimmEncoder) -> str:
    """How a student has its positions: "fixed sin-cos" (``init_student``), "learned" or "other".

    "fixed sin-cos, interpolated" is a fixed table of another grid. "other" are those that are no
    table of the tokens: rotary or relative ones.
    """
    pos_embed = dict(encoder.model.named_parameters()).get("pos_embed")
    if pos_embed is None:
        return "other"
    if pos_embed.requires_grad:
        return "learned"
    return "fixed sin-cos" if has_sincos_positions(encoder) else "fixed sin-cos, interpolated"


def has_sincos_positions(encoder: TimmEncoder) -> bool:
    """Whether the table of positions is the fixed sin-cos one, which pre-training leaves alone."""
    pos_embed, grid = getattr(encoder.model, "pos_embed", None), encoder.facts.grid
    if pos_embed is None:
        return False
    return is_sincos_2d(pos_embed, pos_embed.shape[1] - grid[0] * grid[1], grid)


def set_drop_path(encoder: TimmEncoder, rates: Sequence[float]) -> None:
    """Set the drop-path rate of every block (0 <= rate < 1), the same for all its branches."""
    blocks = encoder.blocks
    if len(rates) != len(blocks):
        raise ValueError(f"{len(rates)} drop-path rates for {len(blocks)} blocks.")
    for block, rate in zip(blocks, rates, strict=True):
        # Two in a block of two branches, one in one of convolutions.
        for name in [name for name, _ in block.named_children() if name.startswith("drop_path")]:
            setattr(block, name, DropPath(rate) if rate else nn.Identity())
        block.train(block.training)


def ramp_drop_path(encoder: TimmEncoder, rate: float) -> None:
    """Set rates that rise linearly from 0 in the first block to ``rate`` in the last."""
    depth = encoder.facts.depth
    last = max(1, depth - 1)
    set_drop_path(encoder, [rate * block / last for block in range(depth)])


def keep_dropping_paths(encoder: TimmEncoder) -> None:
    """Let drop path go on in evaluation mode: for a teacher that is to be disturbed, too."""
    for module in encoder.modules():
        if isinstance(module, DropPath):
            module.train()


def parts_of(student: TimmEncoder) -> Callable[[str, torch.Tensor], dict[str, torch.Tensor]]:
    """``qkv_parts`` of the student's own parameters, also by their names in a distiller."""
    by_head = {
        f"{name}.qkv": module.num_heads
        for name, module in student.model.named_modules()
        if isinstance(module, HEAD_MAJOR)
    }

    def parts(name: str, value: torch.Tensor) -> dict[str, torch.Tensor]:
        owner = _bare(name.removeprefix("student.")).rpartition(".")[0]
        return qkv_parts(name, value, by_head.get(owner))

    return parts


def qkv_parts(
    name: str, value: torch.Tensor, num_heads: int | None = None
) -> dict[str, torch.Tensor]:
    """The queries', keys' and values' rows of a packed projection, by name; else nothing.

    "blocks.11.attn.qkv.weight[queries]" and so on, views of ``value``: a method may train the ones
    without the others. (Biases that are parameters of their own, as EVA's and BEiT's, are not
    decayed, so that they stay as they are without a gradient.) ``num_heads``: of one whose rows lie
    head by head.
    """
    if not name.endswith(("attn.qkv.weight", "attn.qkv.bias")):
        return {}
    if num_heads is None:
        rows = value.detach().unflatten(0, (3, -1))
    else:
        rows = value.detach().unflatten(0, (num_heads, 3, -1)).transpose(0, 1)
    return {f"{name}[{kind}]": rows[i] for i, kind in enumerate(("queries", "keys", "values"))}


def _with_parts(encoder: TimmEncoder) -> dict[str, torch.Tensor]:
    """Parameters, and the parts of packed ones, by name."""
    named: dict[str, torch.Tensor] = dict(encoder.model.named_parameters())
    parts = parts_of(encoder)
    for name, value in list(named.items()):
        named |= parts(name, value)
    return named


def remember(encoder: TimmEncoder, parameter_names: Sequence[str]) -> Callable[[], None]:
    """A function that gives parameters, or their ``qkv_parts``, the values back that they have."""
    own = _with_parts(encoder)
    values = {name: own[name].detach().clone() for name in map(_bare, parameter_names)}

    @torch.no_grad()
    def restore() -> None:
        for name, value in values.items():
            own[name].copy_(value)

    return restore


def reinit_tail(
    encoder: TimmEncoder,
    parameter_names: Sequence[str],
    how: Literal["keep", "reinit", "zero"],
    seed: int,
) -> dict[str, Any]:
    """Decide on the parameters that a method never trained, in place.

    ``parameter_names`` (the encoder's, or timm's bare ones, and names of ``qkv_parts``) are for
    TinyMIM those of the last block's attn.proj, norm2 and mlp, and of the final norm, which its
    loss never reaches. "keep" leaves them; "reinit" draws them afresh as ``build_fresh`` does;
    "zero" draws them afresh and then sets attn.proj and mlp.fc2 to zero, so that the block passes
    its input through. Returns a plain-data report. Raises UserError for an unknown name, and where
    "reinit" or "zero" has no effect.
    """
    names = list(map(_bare, parameter_names))
    own = _with_parts(encoder)
    unknown = [name for name in names if name not in own]
    if unknown:
        raise UserError(
            f"The student has no parameter {', '.join(unknown)}; use names of its parameters."
        )
    zeroed: list[str] = []
    if how != "keep":
        # Another stream than build_student's: its own seed would draw the same weights again.
        drawn = _with_parts(build_fresh(encoder.facts.architecture, {}, seed + 1))
        fresh = {name: drawn[name].to(own[name].device) for name in names}
        if how == "zero":
            outputs = ("attn.proj", "mlp.fc2")
            zeroed = [name for name in names if name.rsplit(".", 1)[0].endswith(outputs)]
        has_effect = zeroed if how == "zero" else any(not own[n].equal(fresh[n]) for n in names)
        if not has_effect:
            raise UserError(
                f"untrained_tail {how} has no effect: what the method leaves untrained "
                f"({', '.join(names) or 'nothing'}) would be as it is; leave it out."
            )
        with torch.no_grad():
            for name in names:
                own[name].copy_(torch.zeros_like(fresh[name]) if name in zeroed else fresh[name])
    return {
        "how": how,
        "parameters": names,
        "zeroed": zeroed,
        "num_values": sum(own[name].numel() for name in names),
    }


def keep_blocks(encoder: TimmEncoder, count: int, seed: int) -> None:
    """Keep the first ``count`` blocks, and draw all that comes after them afresh, in place.

    What is before the blocks (patch embedding, positions, CLS token) is kept, too; the norm after
    the last block is not, unless every block is. Raises UserError for more blocks than there are.
    """
    depth = encoder.facts.depth
    if count > depth:
        raise UserError(f"keep_blocks {count}: the student has {depth} blocks; lower it.")
    if count < depth:
        named = [name for name, _ in encoder.model.named_parameters()]
        after = [name for name in named if encoder.layer_id(name) > count]
        reinit_tail(encoder, after, "reinit", seed)


@cache
def _has_cls_token(name: str) -> bool:
    with torch.device("meta"):
        return timm.create_model(name, num_classes=0).cls_token is not None


def _bare(name: str) -> str:
    return name.removeprefix("model.")
