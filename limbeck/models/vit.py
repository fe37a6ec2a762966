"""Any plain vision Transformer of timm as an Encoder: ViT, DeiT, CLIP, SigLIP, DINOv2/3, EVA, BEiT.

The modules and the parameter names stay timm's, so weights move in both directions unmapped. What
timm lacks is done here: the inner tensors of a block as taps, an early stop after the last block
that is needed, and patches dropped by given indices.
"""

from collections.abc import Callable
from typing import Any

import torch
from timm import create_model
from timm.layers import PatchEmbed, apply_keep_indices_nlc
from timm.models import beit, deit, eva, vision_transformer
from torch import Tensor, nn

from limbeck.errors import UserError
from limbeck.models.attention import (
    IS_PRE_NORM,
    QKV,
    BlockContext,
    add_position_bias,
    attention_branch,
    mlp_branch,
    per_head_weights,
    read_attention,
)
from limbeck.models.beit_bias import QkvBiasBeit
from limbeck.models.cls_distilled import ClsDistilledVit
from limbeck.models.encoder import Encoder, EncoderFacts, check_taps
from limbeck.models.patch_embed import embed_patches
from limbeck.models.tinymim_star import TinyMimStar
from limbeck.ops.masking import is_masked
from limbeck.records import HEAD_KINDS, LOGIT_KINDS, Features, Tap


class VitEncoder(Encoder):
    """A timm vision Transformer behind the Encoder contract; ``model`` is timm's own module.

    ``architecture`` is plain data: ``{"kind": "timm", "name": ..., "kwargs": {...}}``, enough for
    ``timm.create_model(name, **kwargs)``; of another kind, for what ``KINDS`` makes of it.
    ``mean`` and ``std`` (3 values each) normalise images in 0..1.
    Raises UserError for a module, block or attention class that is not supported.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        architecture: dict[str, Any],
        origin: dict[str, Any],
        mean: tuple[float, float, float],
        std: tuple[float, float, float],
    ) -> None:
        super().__init__()
        _check_supported(model, architecture["name"])
        self.model = model
        # Not persistent: they belong to the architecture, and the weights' names stay timm's.
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)
        self.facts = _read_facts(model, architecture, origin, tuple(mean), tuple(std))

    def forward(
        self,
        images: Tensor,
        ids_keep: Tensor | None = None,
        taps: tuple[Tap, ...] = (),
        mask_token: Tensor | None = None,
    ) -> Features:
        """See ``Encoder.forward``. Raises UserError for another image size than built for."""
        check_taps(self, taps, "encoder")
        x, contexts = self._embed(images, ids_keep, mask_token)
        return self._run(x, contexts, taps, self.facts.grid)

    def forward_small(self, images: Tensor, taps: tuple[Tap, ...] = ()) -> Features:
        """See ``Encoder.forward_small``: a plain ViT's positions are interpolated by timm."""
        check_taps(self, taps, "encoder")
        facts, model = self.facts, self.model
        is_plain = type(model) is vision_transformer.VisionTransformer
        if not is_plain or type(model.patch_embed) is not PatchEmbed or model.pos_embed is None:
            return super().forward_small(images, taps)
        height, width = images.shape[2:]
        if height % facts.patch_size or width % facts.patch_size:
            raise UserError(
                f"Images of {height} x {width} pixels do not divide into patches of "
                f"{facts.patch_size} pixels; choose a multiple of the patch size."
            )
        x = _embed_small(model, (images - self.mean) / self.std)
        grid = (height // facts.patch_size, width // facts.patch_size)
        return self._run(x, [{} for _ in model.blocks], taps, grid)

    def _run(
        self,
        x: Tensor,
        contexts: list[BlockContext],
        taps: tuple[Tap, ...],
        grid: tuple[int, int],
    ) -> Features:
        """From the tokens before the first block to what is wanted."""
        depth = self.facts.depth
        ends = {"output", *LOGIT_KINDS}
        wants_all = len(taps) == 0  # torch.compile can't trace "not taps"
        needs_end = wants_all or any(tap.kind in ends for tap in taps)
        at_block: dict[int, list[Tap]] = {}
        for tap in taps:
            if tap.kind not in ends:
                at_block.setdefault(tap.block % depth, []).append(tap)
        found: dict[Tap, Tensor] = {}
        last = depth - 1 if needs_end else max(at_block)
        for index in range(last + 1):
            block, context = self.model.blocks[index], contexts[index]
            here = at_block.get(index, [])
            head_taps = [tap for tap in here if tap.kind in HEAD_KINDS]
            token_taps = [tap for tap in here if tap.kind not in HEAD_KINDS]
            if head_taps:
                found |= _tap_attention(block, x, context, head_taps)
            if token_taps:
                goes_on = index < last or needs_end
                x, inside = _run_block(block, x, context, token_taps, goes_on)
                found |= inside
            elif index < last or needs_end:
                x = block(x, **context)  # [B, N, D]
        tokens = self.model.norm(x) if needs_end else None
        found |= {tap: tokens for tap in taps if tap.kind == "output"}
        logit_taps = [tap for tap in taps if tap.kind in LOGIT_KINDS]
        if logit_taps:
            logits = _read_logits(self.model, tokens)
            found |= {tap: logits[tap.kind] for tap in logit_taps}
        keeps_tokens = wants_all or any(tap.kind == "output" for tap in taps)
        return Features(
            tokens=tokens if keeps_tokens else None,
            num_prefix_tokens=self.facts.num_prefix_tokens,
            grid=grid,
            taps=found,
        )

    def offered_taps(self) -> tuple[str, ...]:
        """All kinds; logits only with a classifier, and those of each head only with two."""
        kinds = (*HEAD_KINDS, *TOKEN_KINDS, "output")
        if not self.facts.num_classes:
            return kinds
        return (*kinds, *(LOGIT_KINDS if self.facts.has_dist_head else ("logits",)))

    def layer_id(self, parameter_name: str) -> int:
        """See ``Encoder.layer_id``; takes the encoder's parameter names and timm's bare ones."""
        first, _, rest = parameter_name.removeprefix("model.").partition(".")
        if first == "blocks":
            return int(rest.partition(".")[0]) + 1
        if first in _BEFORE_BLOCKS:
            return 0
        if first in _AFTER_BLOCKS:
            return self.facts.depth + 1
        raise ValueError(
            f"'{parameter_name}' is no parameter of {self.facts.architecture['name']}."
        )

    def set_num_heads(self, block: int, num_heads: int) -> None:
        """See ``Encoder.set_num_heads``; ``facts`` follow."""
        facts = self.facts
        where = f"Block {block} of {facts.architecture['name']}"
        if not -facts.depth <= block < facts.depth:
            raise UserError(f"{where} does not exist; it has {facts.depth} blocks.")
        attn = self.model.blocks[block].attn
        if num_heads == attn.num_heads:
            return
        width = attn.proj.in_features
        if num_heads < 1 or width % num_heads:
            fitting = [str(n) for n in range(1, width + 1) if width % n == 0 and width // n >= 8]
            raise UserError(
                f"{where} is {width} wide, which does not divide into {num_heads} heads; "
                f"choose an encoder with another width, or one of {', '.join(fitting)} heads."
            )
        per_head = per_head_weights(self.model, attn)
        if per_head:
            raise UserError(
                f"{where} can't be split into {num_heads} heads instead of {attn.num_heads}: it "
                f"has {per_head} for each head; choose an encoder without, or a method that keeps "
                "the head count."
            )
        attn.num_heads = num_heads
        attn.head_dim = width // num_heads
        attn.scale = attn.head_dim**-0.5
        self.facts = _read_facts(
            self.model, facts.architecture, facts.origin, facts.mean, facts.std
        )

    def _embed(
        self, images: Tensor, ids_keep: Tensor | None, mask_token: Tensor | None
    ) -> tuple[Tensor, list[BlockContext]]:
        facts = self.facts
        if tuple(images.shape[1:]) != (3, *facts.img_size):
            raise UserError(
                f"{facts.architecture['name']} was built for images of 3 x {facts.img_size[0]} x "
                f"{facts.img_size[1]}, not {' x '.join(map(str, images.shape[1:]))}; resize the "
                f"images, or build it for another img_size."
            )
        # A model cast to half precision takes its input in it; under autocast nothing changes.
        x = ((images - self.mean) / self.std).to(self.mean.dtype)
        dropped = ids_keep if mask_token is None else None
        x = embed_patches(self.model.patch_embed, x, dropped)  # [B, L, D]
        if mask_token is not None and ids_keep is not None:
            hidden = is_masked(ids_keep, facts.grid[0] * facts.grid[1]).unsqueeze(-1)  # [B, L, 1]
            x = torch.where(hidden.unflatten(1, x.shape[1:-1]), mask_token.to(x.dtype), x)
            ids_keep = None
        return _EMBED[type(self.model)](self.model, x, ids_keep)


def build_encoder(architecture: dict[str, Any], origin: dict[str, Any] | None = None) -> VitEncoder:
    """Rebuild an encoder from ``facts.architecture`` with timm's fresh weights.

    Draws from torch's global generator. Raises UserError where timm can't build it.
    """
    kind, name = architecture.get("kind"), architecture.get("name")
    if kind not in KINDS:
        raise UserError(
            f"An architecture of kind '{kind}' is unknown; the kinds are {', '.join(KINDS)}."
        )
    kwargs = architecture["kwargs"]
    try:
        model = KINDS[kind](name, kwargs)
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"timm can't build '{name}' with {kwargs}: {reason}; change these values."
        ) from error
    encoder = VitEncoder(
        model,
        architecture=architecture,
        origin=origin or {},
        mean=tuple(architecture["mean"]),
        std=tuple(architecture["std"]),
    )
    for block, num_heads in enumerate(architecture.get("num_heads", ())):
        encoder.set_num_heads(block, num_heads)
    return encoder


def _read_facts(
    model: nn.Module,
    architecture: dict[str, Any],
    origin: dict[str, Any],
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
) -> EncoderFacts:
    num_heads = tuple(block.attn.num_heads for block in model.blocks)
    img_size, patch_sides = model.patch_embed.img_size, model.patch_embed.feat_ratio(False)
    if patch_sides[0] != patch_sides[1]:
        raise UserError(
            f"{architecture['name']} has patches of {patch_sides[0]} x {patch_sides[1]} pixels; "
            "only square patches are supported."
        )
    if img_size[0] % patch_sides[0] or img_size[1] % patch_sides[0]:
        raise UserError(
            f"Images of {img_size[0]} x {img_size[1]} pixels do not divide into patches of "
            f"{patch_sides[0]} pixels; choose an img_size that is a multiple of the patch size."
        )
    # Stated, the image size no longer hangs on what timm's name or tag stands for.
    kwargs = architecture["kwargs"] | {"img_size": list(img_size)}
    return EncoderFacts(
        embed_dim=model.embed_dim,
        depth=len(model.blocks),
        num_heads=num_heads,
        num_prefix_tokens=model.num_prefix_tokens,
        has_cls_token=model.cls_token is not None,
        patch_size=patch_sides[0],
        img_size=tuple(img_size),
        mean=mean,
        std=std,
        num_classes=model.num_classes,
        has_dist_head=type(model) in _TWO_HEADS and model.num_classes > 0,
        output_dim=model.num_features,
        can_drop=not _has_position_bias(model),
        has_position_bias=_has_position_bias(model),
        architecture=architecture
        | {
            "kwargs": kwargs,
            "num_heads": list(num_heads),
            "mean": list(mean),
            "std": list(std),
        },
        origin=origin,
    )


# --- From patches to the first block, one function per model class -------------------------------


def _embed_vit(
    model: nn.Module, x: Tensor, ids_keep: Tensor | None
) -> tuple[Tensor, list[BlockContext]]:
    x = model._pos_embed(x)  # [B, N, D]
    x = model.norm_pre(_keep_patches(x, ids_keep, model.num_prefix_tokens))
    return x, [{} for _ in model.blocks]


def _embed_small(model: nn.Module, images: Tensor) -> Tensor:
    """The tokens of normalised images of another size, with timm's interpolated positions."""
    embed = model.patch_embed
    x = embed.proj(images.to(embed.proj.weight.dtype)).permute(0, 2, 3, 1)  # [B, gh, gw, D]
    # timm's own way, for this call: it wants the grid kept until the positions are added.
    before, model.dynamic_img_size = model.dynamic_img_size, True
    try:
        return model.norm_pre(model._pos_embed(embed.norm(x)))  # [B, N, D]
    finally:
        model.dynamic_img_size = before


def _embed_eva(
    model: nn.Module, x: Tensor, ids_keep: Tensor | None
) -> tuple[Tensor, list[BlockContext]]:
    x, rope = model._pos_embed(x)  # [B, N, D], [(depth, nh,) L, 2 * hd]
    if rope is not None and ids_keep is not None:
        rope = apply_keep_indices_nlc(x, rope, ids_keep)
        # The batch axis came first: learned ("mixed") tables want the depth there, fixed ones
        # miss the axis of the heads.
        rope = rope.transpose(0, 1) if model.rope_mixed else rope.unsqueeze(1)
    x = model.norm_pre(_keep_patches(x, ids_keep, model.num_prefix_tokens))
    ropes = rope if model.rope_mixed and rope is not None else [rope] * len(model.blocks)
    return x, [{"rope": ropes[index]} for index in range(len(model.blocks))]


def _has_position_bias(model: nn.Module) -> bool:
    if not isinstance(model, beit.Beit):
        return False
    has_own = model.blocks[0].attn.relative_position_bias_table is not None
    return has_own or model.rel_pos_bias is not None


def _embed_beit(
    model: nn.Module, x: Tensor, ids_keep: Tensor | None
) -> tuple[Tensor, list[BlockContext]]:
    if ids_keep is not None and _has_position_bias(model):
        raise UserError(
            "BEiT's table of relative positions is for the full grid, so patches can't be dropped: "
            "of a teacher set teacher_sees all, which shows it the whole image; or use mask_ratio "
            "0, or another encoder."
        )
    x = torch.cat((model.cls_token.expand(x.shape[0], -1, -1), x), dim=1)  # [B, N, D]
    if model.pos_embed is not None:
        x = x + model.pos_embed
    x = _keep_patches(model.pos_drop(x), ids_keep, model.num_prefix_tokens)
    bias = None if model.rel_pos_bias is None else model.rel_pos_bias()
    return x, [{"shared_rel_pos_bias": bias} for _ in model.blocks]


def _keep_patches(x: Tensor, ids_keep: Tensor | None, num_prefix_tokens: int) -> Tensor:
    if ids_keep is None:
        return x
    prefix, patches = x[:, :num_prefix_tokens], x[:, num_prefix_tokens:]
    kept = patches.gather(1, ids_keep.unsqueeze(-1).expand(-1, -1, x.shape[-1]))  # [B, kept, D]
    return torch.cat((prefix, kept), dim=1)


TOKEN_KINDS = (
    *("block_input", "attention_input", "attention_output"),
    *("attention_tokens", "mlp_output", "tokens"),
)
"""The kinds of tap of a block without one."""


def _run_block(
    block: nn.Module, x: Tensor, context: BlockContext, taps: list[Tap], goes_on: bool
) -> tuple[Tensor, dict[Tap, Tensor]]:
    """The tokens after a block and what was asked for on the way; no further than needed."""
    if all(tap.kind == "tokens" for tap in taps):
        x = block(x, **context)  # [B, N, D]
        return x, dict.fromkeys(taps, x)
    found = {"block_input": x}  # [B, N, D]
    if any(tap.kind == "attention_input" for tap in taps):
        found["attention_input"] = block.norm1(x) if IS_PRE_NORM[type(block)] else x
    if not goes_on and all(tap.kind in found for tap in taps):
        return x, {tap: found[tap.kind] for tap in taps}
    found["attention_output"] = attention_branch(block, x, context)
    x = found["attention_tokens"] = x + block.drop_path1(found["attention_output"])
    if goes_on or any(tap.kind in ("mlp_output", "tokens") for tap in taps):
        found["mlp_output"] = mlp_branch(block, x)
        x = found["tokens"] = x + block.drop_path2(found["mlp_output"])
    return x, {tap: found[tap.kind] for tap in taps}


def _tap_attention(
    block: nn.Module, x: Tensor, context: BlockContext, taps: list[Tap]
) -> dict[Tap, Tensor]:
    q, k, v = read_attention(block, x, context.get("rope"))
    found = {"queries": q, "keys": k, "values": v}  # [B, nh, N, hd] each
    if any(tap.kind == "scores" for tap in taps):
        # The scale goes on one factor first: in half precision the plain product can overflow.
        scores = (q * block.attn.scale) @ k.transpose(-2, -1)  # [B, nh, N, N]
        found["scores"] = add_position_bias(block.attn, scores, context)
    return {tap: found[tap.kind] for tap in taps}


# --- From the last tokens to logits -------------------------------------------------------------


def _read_logits(model: nn.Module, tokens: Tensor) -> dict[str, Tensor]:
    """Logits (B, C) by kind of tap, from the tokens after the final norm (B, N, D)."""
    first = model.get_classifier()
    dtype = (first[0] if isinstance(first, tuple) else first).weight.dtype
    # Not in autocast's bfloat16, where the likeliest classes may tie, and the first would win.
    with torch.autocast(tokens.device.type, enabled=False):
        tokens = tokens.to(dtype)
        if type(model) not in _TWO_HEADS:
            return {"logits": model.forward_head(tokens)}
        of_class, of_dist = _TWO_HEADS[type(model)](model, tokens)
        mean = (of_class + of_dist) / 2
        return {"logits": mean, "class_logits": of_class, "dist_logits": of_dist}


def _read_deit_heads(model: nn.Module, tokens: Tensor) -> tuple[Tensor, Tensor]:
    x, x_dist = model.head_drop(tokens[:, 0]), model.head_drop(tokens[:, 1])  # [B, D] each
    return model.head(x), model.head_dist(x_dist)


_TWO_HEADS: dict[type, Callable[..., tuple[Tensor, Tensor]]] = {
    deit.VisionTransformerDistilled: _read_deit_heads,
    ClsDistilledVit: ClsDistilledVit.read_heads,
    TinyMimStar: TinyMimStar.read_heads,
}
"""The model classes with a class and a distillation head: logits of both."""

# --- What is supported --------------------------------------------------------------------------

_EMBED: dict[type, Callable[..., tuple[Tensor, list[BlockContext]]]] = {
    vision_transformer.VisionTransformer: _embed_vit,
    deit.VisionTransformerDistilled: _embed_vit,
    ClsDistilledVit: _embed_vit,
    TinyMimStar: _embed_vit,
    eva.Eva: _embed_eva,
    beit.Beit: _embed_beit,
    QkvBiasBeit: _embed_beit,
}

_BEFORE_BLOCKS = (
    *("cls_token", "reg_token", "dist_token", "patch_embed"),
    *("pos_embed", "rope", "rel_pos_bias", "norm_pre"),
)
_AFTER_BLOCKS = ("norm", "conv1x1", "fc_norm", "dist_norm", "attn_pool", "head", "head_dist")

KINDS: dict[str, Callable[[str, dict[str, Any]], nn.Module]] = {
    "timm": lambda name, kwargs: create_model(name, **kwargs),
    "tinymim-star": lambda name, kwargs: TinyMimStar(**kwargs),
    "cls-distilled": lambda name, kwargs: ClsDistilledVit(**kwargs),
    "beit-qkv-bias": lambda name, kwargs: QkvBiasBeit(**kwargs),
}
"""How an ``architecture`` of each kind is built from its name and kwargs."""


def _check_supported(model: nn.Module, name: str) -> None:
    _check_class(model, _EMBED, name, "a model class")
    for block in model.blocks:
        _check_class(block, IS_PRE_NORM, name, "blocks of class")
        _check_class(block.attn, QKV, name, "attention of class")


def _check_class(module: nn.Module, table: dict[type, Any], name: str, what: str) -> None:
    if type(module) not in table:
        supported = ", ".join(f"{kind.__module__}.{kind.__name__}" for kind in table)
        raise UserError(
            f"'{name}' has {what} {type(module).__module__}.{type(module).__name__}, which is not "
            f"supported; choose one of {supported}."
        )
