"""The decoder of a masked autoencoder; parameter names are those of the published checkpoints.

Masked Autoencoders Are Scalable Vision Learners, arXiv 2111.06377. Only the CLS token travels with
the patches: other prefix tokens (registers) are no part of MAE and stay in the encoder.
"""

import torch
from timm.layers import LayerNorm, Mlp
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from limbeck.errors import UserError
from limbeck.ops.pos_embed import sincos_2d


class MaeDecoder(nn.Module):
    """From the visible tokens of an encoder to the pixels of every patch.

    ``grid`` (gh, gw) is the full patch grid, ``has_cls_token`` the encoder's. Initialised as MAE is
    (xavier-uniform, zero biases, mask token normal with std 0.02) from torch's generator. Raises
    UserError where heads do not divide ``decoder_embed_dim``. ``has_learned_positions``: they start
    trunc-normal with std 0.02 and are trained (Hiera), instead of fixed sin-cos. Without a
    ``patch_size`` there are no pixels to draw, so neither the last norm nor the pixel head: such a
    decoder has ``decode`` alone.
    """

    def __init__(
        self,
        embed_dim: int,
        grid: tuple[int, int],
        patch_size: int | None,
        decoder_embed_dim: int,
        decoder_depth: int,
        decoder_num_heads: int,
        has_cls_token: bool,
        has_learned_positions: bool = False,
    ) -> None:
        super().__init__()
        check_heads(decoder_embed_dim, decoder_num_heads)
        self.grid = grid
        self.num_cls_tokens = int(has_cls_token)
        self.num_patches = grid[0] * grid[1]
        positions = sincos_2d(decoder_embed_dim, grid, self.num_cls_tokens)
        self.decoder_embed = nn.Linear(embed_dim, decoder_embed_dim)
        self.mask_token = nn.Parameter(torch.empty(1, 1, decoder_embed_dim))
        self.decoder_pos_embed = nn.Parameter(positions.unsqueeze(0), has_learned_positions)
        if has_learned_positions:
            nn.init.trunc_normal_(self.decoder_pos_embed, std=0.02)
        self.decoder_blocks = nn.ModuleList(
            Block(decoder_embed_dim, decoder_num_heads, qkv_bias=True) for _ in range(decoder_depth)
        )
        if patch_size is not None:
            self.decoder_norm = LayerNorm(decoder_embed_dim, eps=1e-6)
            self.decoder_pred = nn.Linear(decoder_embed_dim, patch_size**2 * 3)
        nn.init.normal_(self.mask_token, std=0.02)
        start_linears(self)

    def decode(
        self, tokens: Tensor, ids_keep: Tensor | None = None, last_block: int = -1
    ) -> Tensor:
        """The residual stream (B, cls + L, decoder width) of all places after a block.

        ``tokens`` (B, prefix + kept, D) are the encoder's for the patches ``ids_keep`` (B, kept),
        all of them in their order where None. The blocks after ``last_block`` are not run.
        """
        x = self.decoder_embed(tokens)  # [B, prefix + kept, Dd]
        num_kept = self.num_patches if ids_keep is None else ids_keep.shape[1]
        cls, patches = x[:, : self.num_cls_tokens], x[:, -num_kept:]
        if ids_keep is not None:
            places = ids_keep.unsqueeze(-1).expand(-1, -1, x.shape[-1])  # [B, kept, Dd]
            filler = self.mask_token.to(x.dtype).expand(x.shape[0], self.num_patches, -1)
            patches = filler.scatter(1, places, patches)  # [B, L, Dd]
        x = torch.cat((cls, patches), dim=1) + self.decoder_pos_embed
        for block in self.decoder_blocks[: last_block % len(self.decoder_blocks) + 1]:
            x = block(x)
        return x

    def forward(self, tokens: Tensor, ids_keep: Tensor, ids_draw: Tensor | None = None) -> Tensor:
        """Pixels (B, L, patch_size**2 * 3) of all patches, each in the order row, column, channel.

        ``tokens`` and ``ids_keep`` as of ``decode``. With ``ids_draw`` (B, M) only those patches
        are drawn, (B, M, ...).
        """
        x = self.decode(tokens, ids_keep)[:, self.num_cls_tokens :]  # [B, L, Dd]
        if ids_draw is not None:
            x = x.gather(1, ids_draw.unsqueeze(-1).expand(-1, -1, x.shape[-1]))  # [B, M, Dd]
        return self.decoder_pred(self.decoder_norm(x))  # [B, L or M, patch_size**2 * 3]


def build_projection(in_dim: int, out_dim: int) -> nn.Module:
    """Linear, GELU, Linear (``fc1``, ``fc2``; hidden width ``out_dim``), started as the decoder."""
    projection = Mlp(in_dim, out_dim, out_dim)
    start_linears(projection)
    return projection


def check_heads(width: int, num_heads: int) -> None:
    """Raise UserError where heads do not divide the width of a decoder."""
    if width % num_heads:
        raise UserError(
            f"The decoder is {width} wide, which does not divide into {num_heads} heads; set "
            "decoder_embed_dim to a multiple of them."
        )


def start_linears(module: nn.Module) -> None:
    """Start all linear layers as MAE's: xavier-uniform, zero biases."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.xavier_uniform_(part.weight)
            nn.init.zeros_(part.bias)
