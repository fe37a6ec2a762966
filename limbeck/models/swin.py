"""timm's Swin Transformer as an Encoder.

Swin Transformer, arXiv 2103.14030. Attention is within windows, which every other block shifts, so
patches can't be left out; SimMIM (arXiv 2111.09886) puts a mask token in their place, after the
norm of the patch embedding. Where one window covers all that is left of the image (the last stage
at 224 pixels), attention is global.

timm merges 2 x 2 tokens at the start of a stage, the published code at the end of the one before.
Here the merging belongs to the block that it leads to: what enters that block is merged already.
For layer decay alone it is of the block before, as in the published code.
"""

from collections.abc import Sequence
from typing import Any

import torch
from timm.models import swin_transformer
from torch import Tensor, nn

from limbeck.errors import UserError
from limbeck.models.attention import BlockContext
from limbeck.models.encoder import EncoderFacts
from limbeck.models.timm_encoder import Norm, TimmEncoder, check_class, stated
from limbeck.ops.masking import is_masked
from limbeck.records import Tap


class SwinEncoder(TimmEncoder):
    """A Swin Transformer of timm; "scores" contain its relative position bias."""

    before_blocks = ("patch_embed",)
    after_blocks = ("norm", "head")

    @staticmethod
    def check_supported(model: nn.Module, name: str) -> None:
        """See ``TimmEncoder.check_supported``."""
        check_class(model, {swin_transformer.SwinTransformer: None}, name, "a model class")

    @property
    def blocks(self) -> Sequence[nn.Module]:
        """All blocks in order."""
        return [block for stage in self.model.layers for block in stage.blocks]

    def read_facts(
        self, architecture: dict[str, Any], origin: dict[str, Any], mean: Norm, std: Norm
    ) -> EncoderFacts:
        """See ``TimmEncoder.read_facts``."""
        model, blocks = self.model, self.blocks
        img_size, patch = model.patch_embed.img_size, model.patch_embed.patch_size[0]
        grids = [tuple(block.input_resolution) for block in blocks]
        strides = tuple(patch * model.patch_embed.grid_size[0] // rows for rows, _ in grids)
        if any((r * s, c * s) != img_size for (r, c), s in zip(grids, strides, strict=True)):
            raise UserError(
                f"Images of {img_size[0]} x {img_size[1]} pixels do not divide into the last "
                f"tokens of {architecture['name']}; choose an img_size that is a multiple of "
                f"{patch * 2 ** (len(model.layers) - 1)}."
            )
        dims = tuple(block.dim for block in blocks)
        num_heads = tuple(block.attn.num_heads for block in blocks)
        return EncoderFacts(
            embed_dim=model.num_features,
            depth=len(blocks),
            num_heads=num_heads,
            num_prefix_tokens=0,
            has_cls_token=False,
            patch_size=strides[-1],
            img_size=img_size,
            mean=mean,
            std=std,
            num_classes=model.num_classes,
            block_dims=dims,
            block_strides=strides,
            input_dims=dims,
            input_strides=strides,
            mask_unit=patch,
            global_blocks=tuple(
                index for index, block in enumerate(blocks) if block.window_size == grids[index]
            ),
            can_drop=False,
            has_position_bias=True,
            architecture=stated(architecture, img_size, num_heads, mean, std),
            origin=origin,
        )

    def _enter(
        self, images: Tensor, ids_keep: Tensor | None, mask_token: Tensor | None
    ) -> tuple[Tensor, list[BlockContext]]:
        x = self.model.patch_embed(images)  # [B, gh, gw, D]
        if ids_keep is not None:
            if mask_token is None:
                raise UserError(
                    f"{self.facts.architecture['name']} attends within windows of the full grid, "
                    "so patches can't be dropped; hide them by a mask token (method simmim), show "
                    "it the whole image, or choose another encoder."
                )
            rows, columns = self.facts.mask_grid
            hidden = is_masked(ids_keep, rows * columns).view(-1, rows, columns, 1)
            x = torch.where(hidden, mask_token.to(x.dtype).unsqueeze(1), x)
        return x, [{} for _ in self.blocks]

    def _between(self, index: int, x: Tensor) -> Tensor:
        first = 0
        for stage in self.model.layers:
            if first == index:
                return stage.downsample(x)
            first += len(stage.blocks)
        return x

    def _tap_attention(
        self, index: int, x: Tensor, context: BlockContext, taps: list[Tap], is_dropping: bool
    ) -> dict[Tap, Tensor]:
        block = self.blocks[index]
        attn = block.attn
        read = block.norm1(x).flatten(1, 2)  # [B, N, D]: one window, not shifted
        qkv = attn.qkv(read).unflatten(-1, (3, attn.num_heads, -1)).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)  # [B, nh, N, hd] each
        found = {"queries": q, "keys": k, "values": v}
        if any(tap.kind == "scores" for tap in taps):
            # The scale goes on one factor first: in half precision the plain product can overflow.
            scores = (q * attn.scale) @ k.transpose(-2, -1)  # [B, nh, N, N]
            found["scores"] = scores + attn._get_rel_pos_bias()
        return {tap: found[tap.kind] for tap in taps}

    def _in_rows(self, x: Tensor, index: int, is_dropping: bool) -> Tensor:
        return x.flatten(1, 2)

    def _attention_input(self, block: nn.Module, x: Tensor) -> Tensor:
        return block.norm1(x)

    def _attention_branch(self, block: nn.Module, x: Tensor, context: BlockContext) -> Tensor:
        return block._attn(block.norm1(x))

    def _mlp_branch(self, block: nn.Module, x: Tensor) -> Tensor:
        return block.mlp(block.norm2(x))

    def _finish(self, x: Tensor) -> Tensor:
        return self.model.norm(x)

    def layer_id(self, parameter_name: str) -> int:
        """See ``Encoder.layer_id``; merging is of the last layer of the stage before."""
        return super().layer_id(parameter_name) - (".downsample." in parameter_name)

    def _per_head_weights(self, attn: nn.Module) -> str:
        return "a relative position bias"

    def _block_of(self, name: str) -> int | None:
        parts = name.split(".")
        if parts[0] != "layers":
            return None
        stage = int(parts[1])
        before = sum(len(each.blocks) for each in self.model.layers[:stage])
        return before + (int(parts[3]) if parts[2] == "blocks" else 0)
