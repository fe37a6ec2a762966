"""The inside of timm's blocks: queries, keys and values, and what each branch adds.

They are computed by the block's own layers instead of being caught by hooks: no hidden state, and a
block can be left half-way. One function per attention class and per kind of block; a new class of
plain softmax(q k^T) v attention is one function and one line in a table. Differential and parallel
blocks are no such thing and are left out on purpose.
"""

from collections.abc import Callable
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import AttentionRope, apply_rot_embed_cat
from timm.models import beit, eva, hiera, swin_transformer, tiny_vit, vision_transformer
from torch import Tensor, nn

from limbeck.models.beit_bias import TableAttention
from limbeck.models.encoder import Encoder
from limbeck.models.tinymim_star_rel_pos import TwoTokenAttention
from limbeck.models.vit_det import GridAttention, VitDet

Qkv = tuple[Tensor, Tensor, Tensor]

BlockContext = dict[str, Any]
"""What a block takes besides its tokens: the rotary table or the shared position bias."""


def run_branch(
    block: nn.Module, number: int, branch: nn.Module, x: Tensor, context: BlockContext
) -> Tensor:
    """What a branch adds to the residual stream ``x`` (B, N, D), before drop path.

    ``number``: 1 of the attention, 2 of the MLP, as timm counts their norms and scales.
    """
    norm = getattr(block, f"norm{number}")
    if not IS_PRE_NORM[type(block)]:
        return norm(branch(x, **context))
    added = branch(norm(x), **context)
    # Layer scale: a module in the plain ViT, a bare parameter (or None) in the others.
    if hasattr(block, f"ls{number}"):
        return getattr(block, f"ls{number}")(added)
    gamma = getattr(block, f"gamma_{number}")
    return added if gamma is None else gamma * added


def has_position_bias(model: nn.Module) -> bool:
    """Whether the scores of a plain ViT contain relative positions: of some BEiTs, and VitDet's."""
    if not isinstance(model, beit.Beit):
        return isinstance(model, VitDet)
    has_own = model.blocks[0].attn.relative_position_bias_table is not None
    return has_own or model.rel_pos_bias is not None


def choose_attention(encoder: Encoder, device: torch.device, dtype: torch.dtype) -> None:
    """Compute softmax(q k^T) v step by step where torch's fused kernel is slower.

    That is on a CPU in bfloat16, up to about 600 tokens: step by step is more than twice as fast at
    197 (forward and backward, torch 2.15). Its maps take memory, so that beyond 256 patches the
    kernel stays. ``dtype`` is that of the products, weights' or autocast's.
    """
    facts = encoder.facts
    strides = [facts.block_strides[block] for block in facts.global_blocks or ()]
    counts = [prod(side // stride for side in facts.img_size) for stride in strides]
    choose_attention_of(encoder, max(counts, default=0), device, dtype)


def choose_attention_of(
    network: nn.Module, num_tokens: int, device: torch.device, dtype: torch.dtype
) -> None:
    """Likewise of a network, such as a decoder, that is no encoder."""
    if device.type == "cpu" and dtype == torch.bfloat16 and num_tokens <= 256:
        for module in network.modules():
            if type(module) in (*QKV, *_IN_WINDOWS):
                module.fused_attn = False


def _qkv_plain(attn: nn.Module, x: Tensor, rope: Tensor | None) -> Qkv:
    q, k, v = split_packed(attn.qkv(x), attn.num_heads)
    return attn.q_norm(q), attn.k_norm(k), v


def _qkv_rope(attn: nn.Module, x: Tensor, rope: Tensor | None) -> Qkv:
    is_packed = attn.qkv is not None
    qkv = split_packed(attn.qkv(x), attn.num_heads) if is_packed else _split_separate(attn, x)
    q, k, v = _rotate(attn, qkv, rope)
    groups = attn.num_heads // k.shape[1]
    if groups > 1:
        k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
    return q, k, v


def _qkv_eva(attn: nn.Module, x: Tensor, rope: Tensor | None) -> Qkv:
    if attn.qkv is None:
        return _rotate(attn, _split_separate(attn, x), rope)
    packed = _project_without_key_bias(attn, x)
    return _rotate(attn, split_packed(packed, attn.num_heads), rope)


def _qkv_beit(attn: nn.Module, x: Tensor, rope: Tensor | None) -> Qkv:
    return split_packed(_project_without_key_bias(attn, x), attn.num_heads)


def split_packed(qkv: Tensor, num_heads: int) -> Qkv:
    """The three of a packed projection (B, N, 3 * nh * hd), one after the other in it."""
    qkv = qkv.unflatten(-1, (3, num_heads, -1)).permute(2, 0, 3, 1, 4)  # [3, B, nh, N, hd]
    return qkv[0], qkv[1], qkv[2]


def _split_separate(attn: nn.Module, x: Tensor) -> Qkv:
    head_dim = attn.q_proj.out_features // attn.num_heads
    # Keys and values may have fewer heads than the queries (grouped attention).
    q, k, v = (
        proj(x).unflatten(-1, (-1, head_dim)).transpose(1, 2)  # [B, nh, N, hd]
        for proj in (attn.q_proj, attn.k_proj, attn.v_proj)
    )
    return q, k, v


def _project_without_key_bias(attn: nn.Module, x: Tensor) -> Tensor:
    if attn.q_bias is None:
        return attn.qkv(x)
    return F.linear(x, attn.qkv.weight, torch.cat((attn.q_bias, attn.k_bias, attn.v_bias)))


def _rotate(attn: nn.Module, qkv: Qkv, rope: Tensor | None) -> Qkv:
    q, k, v = attn.q_norm(qkv[0]), attn.k_norm(qkv[1]), qkv[2]
    if rope is None:
        return q, k, v
    prefix = attn.num_prefix_tokens  # they have no place in the image, so they don't turn
    q, k = (
        torch.cat(
            (t[:, :, :prefix], apply_rot_embed_cat(t[:, :, prefix:], rope, half=attn.rotate_half)),
            dim=2,
        ).type_as(v)
        for t in (q, k)
    )
    return q, k, v


_IN_WINDOWS = (hiera.MaskUnitAttention, swin_transformer.WindowAttention, tiny_vit.Attention)

HEAD_MAJOR = (tiny_vit.Attention,)
"""The attention classes whose packed projection has each head's queries, keys, values in turn."""

IS_PRE_NORM: dict[type, bool] = {
    vision_transformer.Block: True,
    vision_transformer.ResPostBlock: False,
    eva.EvaBlock: True,
    eva.EvaBlockPostNorm: False,
    beit.Block: True,
}
"""The block classes supported, and whether their attention reads norm1 of the block's input."""

QKV: dict[type, Callable[..., Qkv]] = {
    vision_transformer.Attention: _qkv_plain,
    AttentionRope: _qkv_rope,
    eva.EvaAttention: _qkv_eva,
    beit.Attention: _qkv_beit,
    TableAttention: _qkv_beit,
    TwoTokenAttention: _qkv_beit,
    GridAttention: _qkv_plain,
}
"""The attention classes supported."""
