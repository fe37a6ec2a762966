"""Weights of a contracted network, cut out of the one that it was contracted from.

Of every axis the first entries are kept: the first channels, the first blocks of each stage, the
first heads, and these whole, where a head stays as wide. Of a smaller window the table of relative
positions keeps the offsets that are left. Where heads are split otherwise (other channels of a head
or, at the same width, another number of them) their attention starts afresh. The network is not the
same function with fewer parts: it is a start that the training mends.

The paper of progressive contraction (TinyViT, arXiv 2207.10666) does not say how its candidates
start; that they may start so is ours.
"""

from math import isqrt

import torch
from torch import Tensor, nn

from limbeck.models.attention import HEAD_MAJOR
from limbeck.models.build import has_sincos_positions
from limbeck.models.timm_encoder import TimmEncoder

_OF_HEADS = ("qkv.weight", "qkv.bias", "proj.weight", "attention_biases")


@torch.no_grad()
def inherit(child: TimmEncoder, parent: TimmEncoder) -> list[str]:
    """Overwrite the child's weights in place by the parent's; names of those that stay as they are.

    The child is of the same family and nowhere larger. Fixed sin-cos positions stay, since they
    depend on the width; so do a classifier that the parent does not have and re-split attention.
    """
    theirs = parent.model.state_dict()
    fresh = []
    for name, own in child.model.state_dict().items():
        value = _cut(name, own, theirs.get(name), child, parent)
        if value is None or (name == "pos_embed" and has_sincos_positions(child)):
            fresh.append(name)
        else:
            own.copy_(value)
    return fresh


def _cut(
    name: str, own: Tensor, value: Tensor | None, child: TimmEncoder, parent: TimmEncoder
) -> Tensor | None:
    if value is None:
        return None
    if ".attn." in name and name.endswith(_OF_HEADS):
        return _cut_heads(name, own, value, child, parent)
    return value[tuple(slice(size) for size in own.shape)]


def _cut_heads(
    name: str, own: Tensor, value: Tensor, child: TimmEncoder, parent: TimmEncoder
) -> Tensor | None:
    (heads, channels), (old_heads, old_channels) = (
        _heads_of(name, encoder) for encoder in (child, parent)
    )
    if channels != old_channels:
        return None
    if name.endswith("attention_biases"):  # [nh, w * w], by the offsets' absolute values
        side, window = isqrt(value.shape[1]), isqrt(own.shape[1])
        return value.view(old_heads, side, side)[:heads, :window, :window].flatten(1)
    if name.endswith("proj.weight"):  # [D, nh * hd]
        return value[: own.shape[0], : heads * channels]
    if isinstance(_attention_of(name, parent), HEAD_MAJOR):
        kept = value.unflatten(0, (old_heads, 3, channels))[:heads].flatten(0, 2)
    else:
        kept = value.unflatten(0, (3, old_heads, channels))[:, :heads].flatten(0, 2)
    return kept[(slice(None), *(slice(size) for size in own.shape[1:]))]


def _attention_of(name: str, encoder: TimmEncoder) -> nn.Module:
    return encoder.model.get_submodule(name[: name.index(".attn.") + len(".attn")])


def _heads_of(name: str, encoder: TimmEncoder) -> tuple[int, int]:
    attn = _attention_of(name, encoder)
    return attn.num_heads, attn.qkv.out_features // (3 * attn.num_heads)
