"""Students: built and initialised from a seed, their tail mended, and turned into classifiers."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import timm
import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import DropPath
from timm.models.deit import VisionTransformerDistilled
from timm.models.hiera import Hiera
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import Block, VisionTransformer
from torch import nn

from limbeck.errors import UserError
from limbeck.models.beit_bias import resize_tables
from limbeck.models.cls_distilled import ClsDistilledVit
from limbeck.models.encoder import EncoderFacts
from limbeck.models.options import GlobalPool, HeadKind, StudentOptions, choose_pool
from limbeck.models.origins.architecture import read_shape, to_architecture, to_ratio
from limbeck.models.origins.checkpoint import has_position_table, interpolation_note
from limbeck.models.shapes import (
    check_model_name,
    check_stated,
    is_hierarchical,
    narrowed,
    pooling_of,
)
from limbeck.models.timm_encoder import TimmEncoder
from limbeck.models.tinymim_star import OUT_DIM, TinyMimStar
from limbeck.models.vit import build_encoder
from limbeck.ops.pos_embed import interpolate_pos_embed, is_sincos_2d, sincos_2d

log = logging.getLogger("limbeck")

_KIND_OF: dict[type, HeadKind] = {
    VisionTransformerDistilled: "distilled",
    ClsDistilledVit: "cls-distilled",
    TinyMimStar: "tinymim-star",
}
# What a plain ViT gets and loses for a second head.
_ADDED = {
    "distilled": ("dist_token",),
    "cls-distilled": ("dist_norm", "fc_norm"),
    "tinymim-star": ("dist_token", "conv1x1", "fc_norm"),
}
_DROPPED = {
    "distilled": (),
    "cls-distilled": ("norm", "fc_norm"),
    "tinymim-star": ("norm", "fc_norm"),
}
_WIDENED = {"distilled": {}, "tinymim-star": {"conv1x1.1.weight": OUT_DIM}}  # name: rows


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
        for key in ("img_size", "patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio")
        if getattr(options, key) is not None
    }
    check_stated(options.name, shape)
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
    std 0.02). Draws from torch's generator.
    """
    if isinstance(model, SwinTransformer):
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
    """Set the drop-path rate of every block (0 <= rate < 1), the same for both of its branches."""
    blocks = encoder.blocks
    if len(rates) != len(blocks):
        raise ValueError(f"{len(rates)} drop-path rates for {len(blocks)} blocks.")
    for block, rate in zip(blocks, rates, strict=True):
        block.drop_path1 = DropPath(rate) if rate else nn.Identity()
        block.drop_path2 = DropPath(rate) if rate else nn.Identity()
        block.train(block.training)


def keep_dropping_paths(encoder: TimmEncoder) -> None:
    """Let drop path go on in evaluation mode: for a teacher that is to be disturbed, too."""
    for module in encoder.modules():
        if isinstance(module, DropPath):
            module.train()


def qkv_parts(name: str, value: torch.Tensor) -> dict[str, torch.Tensor]:
    """The queries', keys' and values' rows of a packed projection, by name; else nothing.

    "blocks.11.attn.qkv.weight[queries]" and so on, views of ``value``: a method may train the ones
    without the others. (Biases that are parameters of their own, as EVA's and BEiT's, are not
    decayed, so that they stay as they are without a gradient.)
    """
    if not name.endswith(("attn.qkv.weight", "attn.qkv.bias")):
        return {}
    rows = value.detach().unflatten(0, (3, -1))
    return {f"{name}[{kind}]": rows[i] for i, kind in enumerate(("queries", "keys", "values"))}


def _with_parts(model: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters, and the parts of packed ones, by name."""
    named: dict[str, torch.Tensor] = dict(model.named_parameters())
    for name, value in list(named.items()):
        named |= qkv_parts(name, value)
    return named


def remember(encoder: TimmEncoder, parameter_names: Sequence[str]) -> Callable[[], None]:
    """A function that gives parameters, or their ``qkv_parts``, the values back that they have."""
    own = _with_parts(encoder.model)
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
    own = _with_parts(encoder.model)
    unknown = [name for name in names if name not in own]
    if unknown:
        raise UserError(
            f"The student has no parameter {', '.join(unknown)}; use names of its parameters."
        )
    zeroed: list[str] = []
    if how != "keep":
        # Another stream than build_student's: its own seed would draw the same weights again.
        drawn = _with_parts(build_fresh(encoder.facts.architecture, {}, seed + 1).model)
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


def with_classifier(
    encoder: TimmEncoder,
    num_classes: int,
    global_pool: GlobalPool | None,
    seed: int,
    *,
    head: HeadKind | None = None,
    num_heads: int | None = None,
    img_size: int | None = None,
    head_init_std: float = 2e-5,
    q_pool: int | None = None,
) -> TimmEncoder:
    """The model to fine-tune: the encoder's weights and a new head, all of it trainable.

    ``head``: the encoder's own kind if not given; "single" is one classifier, "distilled" DeiT's
    two, "tinymim-star" TinyMIM*'s. A plain ViT that becomes one of these gets a distillation
    token (trunc-normal with std 0.02) after its class token, and for it the class token's row of
    positions; TinyMIM*'s wide layer starts as any of its linear layers (trunc-normal, std 0.02).
    "cls-distilled" are MAE-Lite's two, of which the class token has the second, with a fresh norm.

    ``global_pool``: of a single classifier "avg" (if not given) pools the patches and norms
    afterwards (timm's fc_norm), "token" norms and takes the CLS token; "distilled" can only do the
    latter, "cls-distilled" and "tinymim-star" only the former. A norm in another place than the
    encoder's starts fresh, and the encoder's is dropped. Heads start trunc-normal with
    ``head_init_std`` and zero bias.

    Adapted head counts are kept unless ``num_heads`` sets one for all blocks. Another ``img_size``
    (pixels) interpolates the positions. ``q_pool``: of a Hiera, three times if not given. Raises
    UserError for a kind that the encoder can't become, and where any other weight has no
    counterpart.
    """
    facts = encoder.facts
    own_kind = _KIND_OF.get(type(encoder.model), "single")
    head = head or own_kind
    global_pool = choose_pool(head, global_pool)
    _check_head(encoder, own_kind, head)
    if global_pool == "token" and not facts.has_cls_token:
        raise UserError(
            f"{facts.architecture['name']} has no class token; leave --global-pool out."
        )
    weights = _without_head(encoder.model.state_dict())
    architecture = dict(facts.architecture)
    added: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()
    if head != own_kind:
        added, dropped = _ADDED[head], _DROPPED[head]
        weights = {name: value for name, value in weights.items() if _first(name) not in dropped}
        if "dist_token" in added:
            pos_embed = weights["pos_embed"]
            weights["pos_embed"] = torch.cat((pos_embed[:, :1], pos_embed), dim=1)
            architecture |= _architecture_of(weights, head, facts)
        else:
            architecture |= {"kind": head, "name": "vit_cls_distilled"}
            architecture["kwargs"] = plain_shape(encoder)
    changes: dict[str, Any] = {"num_classes": num_classes, "global_pool": global_pool}
    changes |= choose_pooling(architecture["name"], num_classes, q_pool)
    if img_size is not None:
        changes["img_size"] = [img_size, img_size]
    architecture["kwargs"] = architecture["kwargs"] | changes
    if num_heads is not None:
        architecture["num_heads"] = [num_heads] * facts.depth
    with seeded(seed):
        classifier = build_encoder(architecture, facts.origin)
        for linear in _heads(classifier.model):
            nn.init.trunc_normal_(linear.weight, std=head_init_std)
            nn.init.zeros_(linear.bias)
    own = _without_head(classifier.model.state_dict())
    for fresh, old in (("fc_norm", "norm"), ("norm", "fc_norm")):
        is_moved = f"{old}.weight" in weights and f"{old}.weight" not in own
        if is_moved and f"{fresh}.weight" in own:
            added, dropped = (*added, fresh), (*dropped, old)
    if not facts.num_classes:
        # The norm of a Hiera's head: where there was no classifier it is of the pre-training.
        added, dropped = (*added, "head"), (*dropped, "head")
    weights = {name: value for name, value in weights.items() if _first(name) not in dropped}
    own = {name: value for name, value in own.items() if _first(name) not in added}
    old_grid, new_grid = facts.input_grid, classifier.facts.input_grid
    if has_position_table(weights) and old_grid != new_grid:
        num_prefix_rows = weights["pos_embed"].shape[1] - old_grid[0] * old_grid[1]
        weights["pos_embed"] = interpolate_pos_embed(
            weights["pos_embed"], num_prefix_rows, old_grid, new_grid
        )
        log.info(interpolation_note(old_grid, new_grid))
    weights = resize_tables(weights, classifier.model)
    unmatched = [
        name
        for name in sorted(own.keys() | weights.keys())
        if name not in own or name not in weights or own[name].shape != weights[name].shape
    ]
    if unmatched:
        raise UserError(
            f"The encoder's weights do not fit {architecture['name']} with {global_pool} pooling: "
            f"{', '.join(unmatched)}; choose another pooling or head, or keep the image size."
        )
    classifier.model.load_state_dict(classifier.model.state_dict() | weights)
    return classifier


def _check_head(encoder: TimmEncoder, own_kind: HeadKind, head: HeadKind) -> None:
    name = encoder.facts.architecture["name"]
    if own_kind not in (head, "single"):
        raise UserError(
            f"{name} was trained with a distillation token and heads of kind {own_kind}, which "
            f"can't become {head}; leave --head out: without --teacher the labels teach both heads."
        )
    if head != own_kind and not is_plain(encoder):
        raise UserError(
            f"Only a plain ViT with a class token and absolute positions can get a {head} head, "
            f"and {name} is none; choose another student, or leave --head out."
        )


def is_plain(encoder: TimmEncoder) -> bool:
    """A ViT as DeiT's: what its weights do not show must be the same, too."""
    facts, model = encoder.facts, encoder.model
    if type(model) is not VisionTransformer or model.pos_embed is None:
        return False
    is_usual = all(
        type(block) is Block and type(block.mlp.act) is nn.GELU and block.norm1.eps == 1e-6
        for block in model.blocks
    )
    num_rows = 1 + facts.grid[0] * facts.grid[1]
    return is_usual and facts.has_cls_token and model.pos_embed.shape[1] == num_rows


def plain_shape(encoder: TimmEncoder) -> dict[str, Any]:
    """timm's arguments of a plain ViT's shape."""
    facts = encoder.facts
    return {
        "img_size": list(facts.img_size),
        "patch_size": facts.patch_size,
        "embed_dim": facts.embed_dim,
        "depth": facts.depth,
        "num_heads": facts.num_heads[0],
        "mlp_ratio": to_ratio(encoder.model.blocks[0].mlp.fc1.out_features, facts.embed_dim),
    }


def _architecture_of(
    weights: dict[str, torch.Tensor], head: HeadKind, facts: EncoderFacts
) -> dict[str, Any]:
    """The architecture of a plain ViT's weights with the parts of a two-headed one added."""
    telling = weights | {"dist_token": weights["cls_token"]}
    for name, rows in _WIDENED[head].items():
        telling[name] = torch.empty(rows, facts.embed_dim, device="meta")
    shape = read_shape(telling, facts.img_size)
    return to_architecture(shape, facts.num_heads, img_size=facts.img_size)


def _has_cls_token(name: str) -> bool:
    with torch.device("meta"):
        return timm.create_model(name, num_classes=0).cls_token is not None


def _bare(name: str) -> str:
    return name.removeprefix("model.")


def _heads(model: nn.Module) -> list[nn.Linear]:
    classifier = model.get_classifier()
    return list(classifier) if isinstance(classifier, tuple) else [classifier]


def _without_head(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    old_head = ("head", "head_dist", "attn_pool")
    return {
        name: value
        for name, value in weights.items()
        if _first(name) not in old_head or name.startswith("head.norm.")
    }


def _first(name: str) -> str:
    return name.partition(".")[0]
