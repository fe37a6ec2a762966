"""timm's TinyViT as an Encoder.

TinyViT: Fast Pretraining Distillation for Small Vision Transformers, arXiv 2207.10666. The blocks
of its first stage are convolutions (MBConv): they have neither heads nor branches, so of these only
"block_input" and "tokens" are offered. In the others a depthwise convolution comes between
attention and MLP, and it is no branch: what the MLP is added to has gone through it. Attention is
within windows, and so global only where one window covers the map: at the published sizes in the
third and the fourth stage.
"""

from typing import Any

import torch
import torch.nn.functional as F
from timm.models import tiny_vit
from timm.models.swin_transformer import window_partition, window_reverse
from torch import Tensor, nn

from limbeck.models.attention import BlockContext, Qkv
from limbeck.models.timm_encoder import StagedEncoder, check_class, indivisible
from limbeck.models.windows import PATCH_STRIDE, img_size_of
from limbeck.ops.masking import is_masked
from limbeck.records import Features, Tap


class TinyVitEncoder(StagedEncoder):
    """A TinyViT of timm; "scores" contain its bias of relative positions.

    Between blocks tokens are in rows and columns, [B, gh, gw, D]. "output" are the last tokens
    without a norm: the one there is belongs to the classifier, after its mean over the tokens.
    """

    before_blocks = ("patch_embed",)
    after_blocks = ("head",)
    stages_name = "stages"

    @staticmethod
    def check_supported(model: nn.Module, name: str) -> None:
        check_class(model, {tiny_vit.TinyVit: None}, name, "a model class")

    @property
    def window_sizes(self) -> list[int]:
        """Tokens per side of a window, per stage; 1 of the first, which has none."""
        firsts = [stage.blocks[0] for stage in self.model.stages]
        return [1 if _is_conv(block) else block.window_size for block in firsts]

    def _own_facts(self, architecture: dict[str, Any]) -> dict[str, Any]:
        model, blocks = self.model, self.blocks
        img_size = img_size_of(architecture["name"], architecture["kwargs"])
        stage_strides = [PATCH_STRIDE * 2**stage for stage in range(len(model.stages))]
        if any(side % stage_strides[-1] for side in img_size):
            raise indivisible(architecture["name"], img_size, stage_strides[-1])
        stage_of = [index for index, stage in enumerate(model.stages) for _ in stage.blocks]
        widths = [model.stages[0].dim, *(stage.out_dim for stage in model.stages[1:])]
        strides = tuple(stage_strides[stage] for stage in stage_of)
        is_global = [
            not _is_conv(block) and all(side // stride == block.window_size for side in img_size)
            for block, stride in zip(blocks, strides, strict=True)
        ]
        return self._with_stages(
            {
                "img_size": img_size,
                "num_heads": tuple(0 if _is_conv(block) else block.num_heads for block in blocks),
                "block_dims": tuple(widths[stage] for stage in stage_of),
                "block_strides": strides,
                "mask_unit": PATCH_STRIDE,
                "global_blocks": tuple(index for index, each in enumerate(is_global) if each),
            }
        )

    def forward(
        self,
        images: Tensor,
        ids_keep: Tensor | None = None,
        taps: tuple[Tap, ...] = (),
        mask_token: Tensor | None = None,
    ) -> Features:
        self._forget_biases()
        features = super().forward(images, ids_keep, taps, mask_token)
        self._forget_biases()
        return features

    def _forget_biases(self) -> None:
        """timm keeps those of an evaluation, though weights may change, and with their gradient."""
        for block in self.blocks:
            if not _is_conv(block):
                block.attn.attention_bias_cache.clear()

    def _enter(
        self, images: Tensor, ids_keep: Tensor | None, mask_token: Tensor | None
    ) -> tuple[Tensor, list[BlockContext]]:
        no_context: list[BlockContext] = [{} for _ in self.blocks]
        if ids_keep is None:
            return _rows(self.model.patch_embed(images)), no_context  # [B, gh, gw, D]
        mask_token = self._masked_by(mask_token)
        rows, columns = self.facts.mask_grid
        hidden = is_masked(ids_keep, rows * columns).view(-1, 1, rows, columns)
        # The patch embedding looks over the border of a patch: hidden pixels must not be seen.
        pixels = hidden.repeat_interleave(PATCH_STRIDE, 2).repeat_interleave(PATCH_STRIDE, 3)
        x = _rows(self.model.patch_embed(images.masked_fill(pixels, 0.0)))
        x = torch.where(_rows(hidden), mask_token.to(x.dtype).unsqueeze(1), x)
        return x, no_context

    def _merge(self, stage: nn.Module, x: Tensor) -> Tensor:
        return _rows(stage.downsample(_channels_first(x)))

    def _run_block(
        self, block: nn.Module, x: Tensor, context: BlockContext, kinds: set[str], goes_on: bool
    ) -> dict[str, Tensor]:
        if not _is_conv(block):
            return super()._run_block(block, x, context, kinds, goes_on)
        return {"block_input": x, "tokens": _rows(block(_channels_first(x))) if goes_on else x}

    def _read_attention(
        self, index: int, x: Tensor, context: BlockContext, is_dropping: bool
    ) -> Qkv:
        attn = self.blocks[index].attn
        qkv = attn.qkv(attn.norm(x.flatten(1, 2)))  # [B, N, nh * 3 * hd]: one window, head by head
        q, k, v = qkv.unflatten(-1, (attn.num_heads, 3, -1)).permute(3, 0, 2, 1, 4).unbind(0)
        return q, k, v

    def _add_position_bias(
        self, attn: nn.Module, q: Tensor, scores: Tensor, context: BlockContext
    ) -> Tensor:
        return scores + attn.get_attention_biases(scores.device)

    def _attention_input(self, block: nn.Module, x: Tensor) -> Tensor:
        return block.attn.norm(x)

    def _attention_branch(self, block: nn.Module, x: Tensor, context: BlockContext) -> Tensor:
        rows, columns = x.shape[1:3]
        window = (block.window_size, block.window_size)
        below, right = -rows % window[0], -columns % window[1]
        # Padded before the norm and not masked, as timm's (and the published) block does it.
        windows = window_partition(F.pad(x, (0, 0, 0, right, 0, below)), window)
        added = block.attn(windows.flatten(1, 2)).unflatten(1, window)
        return window_reverse(added, window, rows + below, columns + right)[:, :rows, :columns]

    def _before_mlp(self, block: nn.Module, x: Tensor) -> Tensor:
        return _rows(block.local_conv(_channels_first(x)))

    def _mlp_branch(self, block: nn.Module, x: Tensor) -> Tensor:
        return block.mlp(x)

    def _classify(self, x: Tensor) -> dict[str, Tensor]:
        return super()._classify(_channels_first(x))

    def _per_head_weights(self, attn: nn.Module) -> str:
        return "a bias of relative positions"


def _is_conv(block: nn.Module) -> bool:
    return isinstance(block, tiny_vit.MBConv)


def _rows(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1)  # [B, gh, gw, D]


def _channels_first(x: Tensor) -> Tensor:
    return x.permute(0, 3, 1, 2)  # [B, D, gh, gw]
