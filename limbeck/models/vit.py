"""Any plain vision Transformer of timm as an Encoder: ViT, DeiT, CLIP, SigLIP, DINOv2/3, EVA, BEiT.

Patches are dropped by given indices here. ``build_encoder`` and ``wrap`` know all families.
"""

from collections.abc import Callable
from typing import Any

import torch
from timm import create_model
from timm.layers import AttentionRope, PatchEmbed, apply_keep_indices_nlc
from timm.models import beit, deit, eva, hiera, swin_transformer, tiny_vit, vision_transformer
from torch import Tensor, nn

from limbeck.errors import UserError
from limbeck.models.attention import (
    IS_PRE_NORM,
    QKV,
    BlockContext,
    Qkv,
    has_position_bias,
    run_branch,
)
from limbeck.models.beit_bias import QkvBiasBeit
from limbeck.models.cls_distilled import ClsDistilledVit
from limbeck.models.distilled_last import DistilledLastVit
from limbeck.models.encoder import check_taps
from limbeck.models.hiera import HieraEncoder
from limbeck.models.patch_embed import embed_patches
from limbeck.models.stated import arguments_of, check_kwargs, check_name
from limbeck.models.swin import SwinEncoder
from limbeck.models.timm_encoder import TimmEncoder, check_class
from limbeck.models.tiny_vit import TinyVitEncoder
from limbeck.models.tinymim_star import TinyMimStar
from limbeck.models.tinymim_star_rel_pos import TinyMimStarRelPos
from limbeck.models.vit_det import GridAttention, VitDet
from limbeck.models.windows import timm_kwargs
from limbeck.ops.masking import is_masked
from limbeck.records import Features, Tap


class VitEncoder(TimmEncoder):
    """A plain vision Transformer of timm, or one of ``KINDS``; see ``TimmEncoder``."""

    before_blocks = (
        *("cls_token", "reg_token", "dist_token", "patch_embed"),
        *("pos_embed", "rope", "rel_pos_bias", "norm_pre"),
    )
    after_blocks = ("norm", "conv1x1", "fc_norm", "dist_norm", "attn_pool", "head", "head_dist")

    @staticmethod
    def check_supported(model: nn.Module, name: str) -> None:
        check_class(model, _EMBED | _FAMILIES, name, "a model class")
        for block in model.blocks:
            check_class(block, IS_PRE_NORM, name, "blocks of class")
            check_class(block.attn, QKV, name, "attention of class")

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
        return self._run(x, [{} for _ in model.blocks], taps, grid, is_dropping=False)

    def weights_from(self, block: int, *, is_dropping: bool = False) -> dict[str, Tensor]:
        """See ``Encoder.weights_from``; a table of places is for the full grid."""
        block %= self.facts.depth
        context = _contexts(self.model)[block].values()
        is_bound = not self.facts.can_drop or any(value is not None for value in context)
        if is_dropping and is_bound:
            raise UserError(
                f"{self.facts.architecture['name']} needs the places of its tokens, so that those "
                "of a masked image can't be stored; set teacher_sees all or mask_ratio 0, or train "
                "with it as a live teacher."
            )
        shared = ("rope", "rel_pos_bias")
        if block == self.facts.depth - 1:
            shared = (*shared, "norm", "conv1x1", "fc_norm")  # what stands for the final norm
        named = dict(self.named_parameters()) | dict(self.named_buffers())
        return {
            name: value.detach()
            for name, value in named.items()
            if (bare := name.removeprefix("model.")).partition(".")[0] in shared
            or self._block_of(bare) == block
        }

    def continue_from(self, block: int, tokens: Tensor, taps: tuple[Tap, ...]) -> Features:
        check_taps(self, taps, "encoder")
        contexts, grid = _contexts(self.model), self.facts.grid
        first = block % self.facts.depth
        return self._run(tokens, contexts, taps, grid, is_dropping=False, first=first)

    def _own_facts(self, architecture: dict[str, Any]) -> dict[str, Any]:
        model = self.model
        img_size, patch_sides = model.patch_embed.img_size, model.patch_embed.feat_ratio(False)
        if patch_sides[0] != patch_sides[1]:
            raise UserError(
                f"{architecture['name']} has patches of {patch_sides[0]} x {patch_sides[1]} "
                "pixels; only square patches are supported."
            )
        if img_size[0] % patch_sides[0] or img_size[1] % patch_sides[0]:
            raise UserError(
                f"Images of {img_size[0]} x {img_size[1]} pixels do not divide into patches of "
                f"{patch_sides[0]} pixels; choose an img_size that is a multiple of the patch size."
            )
        return {
            "img_size": tuple(img_size),
            "num_heads": tuple(block.attn.num_heads for block in model.blocks),
            "patch_size": patch_sides[0],
            "embed_dim": model.embed_dim,
            "output_dim": model.num_features,
            "num_prefix_tokens": model.num_prefix_tokens,
            "has_cls_token": model.cls_token is not None,
            "has_dist_head": type(model) in _TWO_HEADS and model.num_classes > 0,
            "can_drop": not has_position_bias(model),
            "has_position_bias": has_position_bias(model),
            "global_blocks": model.global_blocks if isinstance(model, VitDet) else None,
        }

    def _enter(
        self, images: Tensor, ids_keep: Tensor | None, mask_token: Tensor | None
    ) -> tuple[Tensor, list[BlockContext]]:
        dropped = ids_keep if mask_token is None else None
        x = embed_patches(self.model.patch_embed, images, dropped)  # [B, L, D]
        if mask_token is not None and ids_keep is not None:
            rows, columns = self.facts.grid
            hidden = is_masked(ids_keep, rows * columns).unsqueeze(-1)  # [B, L, 1]
            x = torch.where(hidden.unflatten(1, x.shape[1:-1]), mask_token.to(x.dtype), x)
            ids_keep = None
        return _EMBED[type(self.model)](self.model, x, ids_keep)

    def _read_attention(
        self, index: int, x: Tensor, context: BlockContext, is_dropping: bool
    ) -> Qkv:
        block = self.blocks[index]
        read = QKV[type(block.attn)]
        return read(block.attn, self._attention_input(block, x), context.get("rope"))

    def _add_position_bias(
        self, attn: nn.Module, q: Tensor, scores: Tensor, context: BlockContext
    ) -> Tensor:
        if isinstance(attn, GridAttention):
            return scores + attn.distance_bias(q)
        if not isinstance(attn, beit.Attention):
            return scores
        if attn.relative_position_bias_table is not None:
            scores = scores + attn._get_rel_pos_bias()
        shared = context.get("shared_rel_pos_bias")
        return scores if shared is None else scores + shared

    def _attention_input(self, block: nn.Module, x: Tensor) -> Tensor:
        return block.norm1(x) if IS_PRE_NORM[type(block)] else x

    def _attention_branch(self, block: nn.Module, x: Tensor, context: BlockContext) -> Tensor:
        return run_branch(block, 1, block.attn, x, context)

    def _mlp_branch(self, block: nn.Module, x: Tensor) -> Tensor:
        return run_branch(block, 2, block.mlp, x, {})

    def _finish(self, x: Tensor) -> Tensor:
        return self.model.norm(x)

    def _classify(self, x: Tensor) -> dict[str, Tensor]:
        if type(self.model) not in _TWO_HEADS:
            return super()._classify(x)
        of_class, of_dist = _TWO_HEADS[type(self.model)](self.model, x)
        mean = (of_class + of_dist) / 2
        return {"logits": mean, "class_logits": of_class, "dist_logits": of_dist}

    def layer_id(self, parameter_name: str) -> int:
        """See ``TimmEncoder.layer_id``.

        G2SD's distillation token learns with the heads, and so does TinyMIM*'s where it segments.
        """
        late = (DistilledLastVit, TinyMimStarRelPos)
        if type(self.model) in late and parameter_name.endswith("dist_token"):
            return self.facts.depth + 1
        return super().layer_id(parameter_name)

    def _per_head_weights(self, attn: nn.Module) -> str:
        if isinstance(attn, AttentionRope) or getattr(self.model, "rope", None) is not None:
            return "a rotary position table"
        if isinstance(attn, beit.Attention):
            return "a relative position bias" if has_position_bias(self.model) else ""
        if isinstance(attn, GridAttention):
            return "tables of relative positions as wide as a head"
        return "" if isinstance(attn.q_norm, nn.Identity) else "a query and key norm"


def build_encoder(
    architecture: dict[str, Any], origin: dict[str, Any] | None = None
) -> TimmEncoder:
    """Rebuild an encoder from ``facts.architecture`` with timm's fresh weights.

    Draws from torch's global generator. Raises UserError where timm can't build it, and, before
    anything is built, for a name or arguments that are none of a network's shape.
    """
    kind, name = architecture.get("kind"), architecture.get("name")
    if kind not in KINDS:
        raise UserError(
            f"An architecture of kind '{kind}' is unknown; the kinds are {', '.join(KINDS)}."
        )
    kwargs = architecture["kwargs"]
    if kind == "timm":
        check_name(name)
    check_kwargs(name, kwargs, arguments_of(name) if kind == "timm" else None)
    try:
        model = KINDS[kind](name, kwargs)
    except (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError,
            ValueError) as error:  # fmt: skip
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"timm can't build '{name}' with {kwargs}: {reason}; change these values."
        ) from error
    encoder = wrap(model, architecture=architecture, origin=origin or {})
    for block, num_heads in enumerate(architecture.get("num_heads", ())):
        encoder.set_num_heads(block, num_heads)
    return encoder


# --- From patches to the first block, one function per model class -------------------------------


def _embed_vit(
    model: nn.Module, x: Tensor, ids_keep: Tensor | None
) -> tuple[Tensor, list[BlockContext]]:
    x = model._pos_embed(x)  # [B, N, D]
    x = model.norm_pre(_keep_patches(x, ids_keep, model.num_prefix_tokens))
    return x, _contexts(model)


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
    return x, _ropes(model, rope)


def _ropes(model: nn.Module, rope: Tensor | None) -> list[BlockContext]:
    ropes = rope if model.rope_mixed and rope is not None else [rope] * len(model.blocks)
    return [{"rope": ropes[index]} for index in range(len(model.blocks))]


def _embed_beit(
    model: nn.Module, x: Tensor, ids_keep: Tensor | None
) -> tuple[Tensor, list[BlockContext]]:
    if ids_keep is not None and has_position_bias(model):
        raise UserError(
            "BEiT's table of relative positions is for the full grid, so patches can't be dropped: "
            "of a teacher set teacher_sees all, which shows it the whole image; or use mask_ratio "
            "0, or another encoder."
        )
    tokens = [model.cls_token, *([model.dist_token] if model.num_prefix_tokens == 2 else [])]
    prefix = [token.expand(x.shape[0], -1, -1) for token in tokens]
    x = torch.cat((*prefix, x), dim=1)  # [B, N, D]
    if model.pos_embed is not None:
        x = x + model.pos_embed
    x = _keep_patches(model.pos_drop(x), ids_keep, model.num_prefix_tokens)
    return x, _contexts(model)


def _contexts(model: nn.Module) -> list[BlockContext]:
    """What each block takes besides the tokens of the full grid."""
    if isinstance(model, eva.Eva):
        rope = model.rope and model.rope.get_embed(shape=list(model.patch_embed.grid_size))
        return _ropes(model, rope)
    if isinstance(model, beit.Beit):
        bias = None if model.rel_pos_bias is None else model.rel_pos_bias()
        return [{"shared_rel_pos_bias": bias} for _ in model.blocks]
    return [{} for _ in model.blocks]


def _keep_patches(x: Tensor, ids_keep: Tensor | None, num_prefix_tokens: int) -> Tensor:
    if ids_keep is None:
        return x
    prefix, patches = x[:, :num_prefix_tokens], x[:, num_prefix_tokens:]
    kept = patches.gather(1, ids_keep.unsqueeze(-1).expand(-1, -1, x.shape[-1]))  # [B, kept, D]
    return torch.cat((prefix, kept), dim=1)


# --- Two heads ------------------------------------------------------------------------------------


def _read_deit_heads(model: nn.Module, tokens: Tensor) -> tuple[Tensor, Tensor]:
    x, x_dist = model.head_drop(tokens[:, 0]), model.head_drop(tokens[:, 1])  # [B, D] each
    return model.head(x), model.head_dist(x_dist)


_TWO_HEADS: dict[type, Callable[..., tuple[Tensor, Tensor]]] = {
    deit.VisionTransformerDistilled: _read_deit_heads,
    DistilledLastVit: _read_deit_heads,
    ClsDistilledVit: ClsDistilledVit.read_heads,
    TinyMimStar: TinyMimStar.read_heads,
}
"""The model classes with a class and a distillation head: logits of both."""

# --- What is supported --------------------------------------------------------------------------

_EMBED: dict[type, Callable[..., tuple[Tensor, list[BlockContext]]]] = {
    vision_transformer.VisionTransformer: _embed_vit,
    deit.VisionTransformerDistilled: _embed_vit,
    DistilledLastVit: _embed_vit,
    ClsDistilledVit: _embed_vit,
    TinyMimStar: _embed_vit,
    VitDet: _embed_vit,
    eva.Eva: _embed_eva,
    beit.Beit: _embed_beit,
    QkvBiasBeit: _embed_beit,
    TinyMimStarRelPos: _embed_beit,
}

KINDS: dict[str, Callable[[str, dict[str, Any]], nn.Module]] = {
    "timm": lambda name, kwargs: create_model(name, **timm_kwargs(name, kwargs)),
    "tinymim-star": lambda name, kwargs: TinyMimStar(**kwargs),
    "cls-distilled": lambda name, kwargs: ClsDistilledVit(**kwargs),
    "distilled-last": lambda name, kwargs: DistilledLastVit(**kwargs),
    "beit-qkv-bias": lambda name, kwargs: QkvBiasBeit(**kwargs),
    "tinymim-star-rel-pos": lambda name, kwargs: TinyMimStarRelPos(**kwargs),
    "vit-det": lambda name, kwargs: VitDet(**kwargs),
}
"""How an ``architecture`` of each kind is built from its name and kwargs."""

_FAMILIES: dict[type, type[TimmEncoder]] = {
    hiera.Hiera: HieraEncoder,
    swin_transformer.SwinTransformer: SwinEncoder,
    tiny_vit.TinyVit: TinyVitEncoder,
}
"""The model classes that are not plain, and the encoder of each."""


def has_usual_blocks(model: nn.Module) -> bool:
    """Whether a ViT's blocks are DeiT's and MAE's in what their weights do not show."""
    return all(
        type(block) is vision_transformer.Block
        and type(block.mlp.act) is nn.GELU
        and block.norm1.eps == 1e-6
        for block in model.blocks
    )


def wrap(model: nn.Module, **described: Any) -> TimmEncoder:
    """timm's model as the encoder of its family; arguments as of ``TimmEncoder``."""
    return _FAMILIES.get(type(model), VitEncoder)(model, **described)
