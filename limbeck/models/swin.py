"""timm's Swin Transformer as an Encoder.

Swin Transformer, arXiv 2103.14030. Attention is within windows, which every other block shifts, so
patches can't be left out; SimMIM (arXiv 2111.09886) puts a mask token in their place, after the
norm of the patch embedding. Where one window covers all that is left of the image (the last stage
at 224 pixels), attention is global.
"""

from typing import Any

import torch
from timm.models import swin_transformer
from torch import Tensor, nn

from limbeck.models.attention import BlockContext, Qkv, split_packed
from limbeck.models.timm_encoder import StagedEncoder, check_class, indivisible
from limbeck.ops.masking import is_masked


class SwinEncoder(StagedEncoder):
    """A Swin Transformer of timm; "scores" contain its relative position bias."""

    before_blocks = ("patch_embed",)
    after_blocks = ("norm", "head")
    stages_name = "layers"

    @staticmethod
    def check_supported(model: nn.Module, name: str) -> None:
        check_class(model, {swin_transformer.SwinTransformer: None}, name, "a model class")

    def _own_facts(self, architecture: dict[str, Any]) -> dict[str, Any]:
        model, blocks = self.model, self.blocks
        img_size, patch = model.patch_embed.img_size, model.patch_embed.patch_size[0]
        grids = [tuple(block.input_resolution) for block in blocks]
        strides = tuple(patch * model.patch_embed.grid_size[0] // rows for rows, _ in grids)
        if any((r * s, c * s) != img_size for (r, c), s in zip(grids, strides, strict=True)):
            multiple = patch * 2 ** (len(model.layers) - 1)
            raise indivisible(architecture["name"], img_size, multiple)
        is_global = [b.window_size == grid for b, grid in zip(blocks, grids, strict=True)]
        return self._with_stages(
            {
                "img_size": img_size,
                "num_heads": tuple(block.attn.num_heads for block in blocks),
                "block_dims": tuple(block.dim for block in blocks),
                "block_strides": strides,
                "mask_unit": patch,
                "global_blocks": tuple(index for index, each in enumerate(is_global) if each),
            }
        )

    def _enter(
        self, images: Tensor, ids_keep: Tensor | None, mask_token: Tensor | None
    ) -> tuple[Tensor, list[BlockContext]]:
        x = self.model.patch_embed(images)  # [B, gh, gw, D]
        if ids_keep is not None:
            mask_token = self._masked_by(mask_token)
            rows, columns = self.facts.mask_grid
            hidden = is_masked(ids_keep, rows * columns).view(-1, rows, columns, 1)
            x = torch.where(hidden, mask_token.to(x.dtype).unsqueeze(1), x)
        return x, [{} for _ in self.blocks]

    def _merge(self, stage: nn.Module, x: Tensor) -> Tensor:
        return stage.downsample(x)

    def _read_attention(
        self, index: int, x: Tensor, context: BlockContext, is_dropping: bool
    ) -> Qkv:
        block = self.blocks[index]
        read = block.norm1(x).flatten(1, 2)  # [B, N, D]: one window, not shifted
        return split_packed(block.attn.qkv(read), block.attn.num_heads)

    def _add_position_bias(
        self, attn: nn.Module, q: Tensor, scores: Tensor, context: BlockContext
    ) -> Tensor:
        return scores + attn._get_rel_pos_bias()

    def _attention_branch(self, block: nn.Module, x: Tensor, context: BlockContext) -> Tensor:
        return block._attn(block.norm1(x))

    def _mlp_branch(self, block: nn.Module, x: Tensor) -> Tensor:
        return block.mlp(block.norm2(x))

    def _finish(self, x: Tensor) -> Tensor:
        return self.model.norm(x)

    def _per_head_weights(self, attn: nn.Module) -> str:
        return "a relative position bias"
