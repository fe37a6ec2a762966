"""timm's Hiera as an Encoder.

Hiera: A Hierarchical Vision Transformer without the Bells-and-Whistles, arXiv 2306.00989. Tokens
are pooled on the way, and what is dropped are mask units (32 x 32 pixels of the usual model), with
all tokens in them. Inside, timm's order is kept: (place within the unit, unit), so that pooling and
attention within units are plain reshapes. Taps leave in the contract's order.

How often is pooled (``q_pool``) needs no weights: twice in masked pre-training, so that the last
tokens stand for 16 x 16 pixels, three times in a classifier (``shapes.pooling_of``).
"""

from math import prod
from typing import Any

import torch
from timm.models import hiera
from torch import Tensor, nn

from limbeck.errors import UserError
from limbeck.models.attention import BlockContext, Qkv, split_packed
from limbeck.models.timm_encoder import TimmEncoder, check_class
from limbeck.models.windows import to_grid
from limbeck.ops.masking import is_masked


class HieraEncoder(TimmEncoder):
    """A Hiera of timm. Where units are hidden, so are their pixels: its first convolution overlaps.

    "output" are the last tokens without a norm: the one there is belongs to the classifier, after
    its mean over the tokens. The first block of a stage may pool its queries, which then are fewer
    than its keys.
    """

    before_blocks = ("patch_embed", "pos_embed", "pos_embed_win")
    after_blocks = ("head",)
    heads_name = "heads"

    @staticmethod
    def check_supported(model: nn.Module, name: str) -> None:
        check_class(model, {hiera.Hiera: None}, name, "a model class")
        num_pools = len(model.unroll.schedule)
        is_usual = prod(model.q_stride) ** num_pools == model.mu_size and len(model.q_stride) == 2
        if model.pos_embed is None or not is_usual:
            raise UserError(
                f"'{name}' is no Hiera of images whose mask units are one token after the last "
                "pooling; choose one with the usual mask_unit_size and q_stride."
            )

    def _own_facts(self, architecture: dict[str, Any]) -> dict[str, Any]:
        model = self.model
        stride, sides = model.patch_stride[0], model.tokens_spatial_shape
        img_size = sides[0] * stride, sides[1] * stride
        unit = model.mask_unit_size[0] * stride
        given = to_grid(architecture["kwargs"].get("img_size", img_size))
        if given != img_size or any(side % unit for side in img_size):
            raise UserError(
                f"Images of {given[0]} x {given[1]} pixels do not divide into the mask units of "
                f"{architecture['name']}; choose an img_size that is a multiple of {unit}."
            )
        strides, now = [], stride
        for block in model.blocks:
            now *= int(block.attn.q_stride**0.5)
            strides.append(now)
        is_global = [not block.attn.use_mask_unit_attn for block in model.blocks]
        return {
            "img_size": img_size,
            "num_heads": tuple(block.attn.heads for block in model.blocks),
            "patch_size": strides[-1],
            "block_dims": tuple(block.dim_out for block in model.blocks),
            "block_strides": tuple(strides),
            "mask_unit": unit,
            "global_blocks": tuple(index for index, each in enumerate(is_global) if each),
        }

    def _enter(
        self, images: Tensor, ids_keep: Tensor | None, mask_token: Tensor | None
    ) -> tuple[Tensor, list[BlockContext]]:
        model, facts = self.model, self.facts
        no_context: list[BlockContext] = [{} for _ in model.blocks]
        if ids_keep is None:
            return model.unroll(model._pos_embed(model.patch_embed(images))), no_context
        rows, columns = facts.mask_grid
        hidden = is_masked(ids_keep, rows * columns).view(-1, 1, rows, columns)
        x = model.patch_embed(images, mask=~hidden)  # [B, L, D]
        if mask_token is not None:
            side = model.mask_unit_size[0]
            tokens = hidden.repeat_interleave(side, 2).repeat_interleave(side, 3)
            x = torch.where(tokens.flatten(1).unsqueeze(-1), mask_token.to(x.dtype), x)
            return model.unroll(model._pos_embed(x)), no_context
        x = model.unroll(model._pos_embed(x)).unflatten(1, (model.mu_size, -1))  # [B, mu, U, D]
        places = ids_keep[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[-1])
        return x.gather(2, places).flatten(1, 2), no_context  # [B, mu * kept, D]

    def _read_attention(
        self, index: int, x: Tensor, context: BlockContext, is_dropping: bool
    ) -> Qkv:
        block = self.blocks[index]
        attn = block.attn
        q, k, v = split_packed(attn.qkv(block.norm1(x)), attn.heads)
        if attn.q_stride > 1:
            q = q.unflatten(2, (attn.q_stride, -1)).amax(dim=2)
        q = self._heads_in_rows(q, index, is_dropping)
        k, v = (self._heads_in_rows(each, max(index - 1, 0), is_dropping) for each in (k, v))
        return q, k, v

    def _heads_in_rows(self, x: Tensor, index: int, is_dropping: bool) -> Tensor:
        return self._in_rows(x.flatten(0, 1), index, is_dropping).unflatten(0, x.shape[:2])

    def _in_rows(self, x: Tensor, index: int, is_dropping: bool) -> Tensor:
        # timm's module asks no more of the mask than whether there is one.
        rolled = self.model.reroll(x, index, mask=x if is_dropping else None)
        return rolled.flatten(1, -2)  # from [B, H, W, D], or [B, U, h, w, D] of the units kept

    def _attention_branch(self, block: nn.Module, x: Tensor, context: BlockContext) -> Tensor:
        return block.ls1(block.attn(block.norm1(x)))

    def _mlp_branch(self, block: nn.Module, x: Tensor) -> Tensor:
        return block.ls2(block.mlp(block.norm2(x)))

    def _shortcut(self, block: nn.Module, x: Tensor) -> Tensor:
        if not block.do_expand:
            return x
        wide = x if block.proj is None else block.proj(block.norm1(x))
        pooled = wide.unflatten(1, (block.attn.q_stride, -1))  # [B, 4 (or 1), N, D]
        most = pooled.amax(dim=1)
        return most if block.proj is not None else torch.cat((most, pooled.mean(dim=1)), dim=-1)
