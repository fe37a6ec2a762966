"""TinyViT's published file (arXiv 2207.10666): its names, in both directions, and what it tells.

Its code merges tokens at the end of a stage, timm at the start of the next one; all else differs
in words. Shapes tell everything but the image size, which is the one that the last window covers.
"""

import re
from typing import Any

from limbeck.errors import UserError
from limbeck.models.encoder import Encoder
from limbeck.models.origins.architecture import to_ratio
from limbeck.models.origins.layouts import IMAGENET_NORM, Weights, check_telling
from limbeck.models.tiny_vit import TinyVitEncoder
from limbeck.models.windows import PATCH_STRIDE, window_sizes_for

# timm's name of the published widths, for the reader: what differs is stated.
_NAMES = {(64, 128, 160, 320): "tiny_vit_5m_224", (64, 128, 256, 448): "tiny_vit_11m_224"}
_HEAD_DIM = 32  # of every head of the published ones
_BLOCK = re.compile(r"stages\.(\d+)\.blocks\.(\d+)\.")


def is_published(weights: Weights) -> bool:
    """Whether these are a TinyViT's tensors in the names of the released code."""
    return "patch_embed.seq.0.c.weight" in weights


def is_timms(weights: Weights) -> bool:
    """Likewise in timm's names."""
    telling = {"patch_embed.conv1.conv.weight", "stages.1.blocks.0.attn.attention_biases"}
    return telling <= weights.keys()


def timm_name(name: str) -> str:
    """timm's name of a published tensor."""
    name = re.sub(r"^patch_embed\.seq\.0\.", "patch_embed.conv1.", name)
    name = re.sub(r"^patch_embed\.seq\.2\.", "patch_embed.conv2.", name)
    name = re.sub(
        r"^layers\.(\d+)\.downsample\.", lambda m: f"stages.{int(m[1]) + 1}.downsample.", name
    )
    name = re.sub(r"^layers\.", "stages.", name)
    name = re.sub(r"\.c\.weight$", ".conv.weight", name)
    name = re.sub(r"^head\.(weight|bias)$", r"head.fc.\1", name)
    return re.sub(r"^norm_head\.", "head.norm.", name)


def published_name(name: str) -> str:
    """The published name of timm's tensor: the inverse of ``timm_name``."""
    name = re.sub(r"^patch_embed\.conv1\.", "patch_embed.seq.0.", name)
    name = re.sub(r"^patch_embed\.conv2\.", "patch_embed.seq.2.", name)
    name = re.sub(
        r"^stages\.(\d+)\.downsample\.", lambda m: f"layers.{int(m[1]) - 1}.downsample.", name
    )
    name = re.sub(r"^stages\.", "layers.", name)
    name = re.sub(r"\.conv\.weight$", ".c.weight", name)
    name = re.sub(r"^head\.fc\.", "head.", name)
    return re.sub(r"^head\.norm\.", "norm_head.", name)


def read_arguments(weights: Weights) -> tuple[str, dict[str, Any], tuple[int, ...]]:
    """timm's name, the arguments and the heads per block that tensors in timm's names tell.

    Raises UserError where one that tells the shape is missing or of another form.
    """
    numbers = [match for match in map(_BLOCK.match, weights) if match]
    blocks = {(int(match[1]), int(match[2])) for match in numbers}
    num_stages = max((stage for stage, _ in blocks), default=0) + 1
    check_telling(weights, {}, (), "TinyViT", num_stages)
    depths = [sum(own == stage for own, _ in blocks) for stage in range(num_stages)]
    firsts = [f"stages.{stage}.blocks.0." for stage in range(num_stages)]
    num_axes = {f"{firsts[0]}conv1.conv.weight": 4, "head.norm.weight": 1}
    for first in firsts[1:]:
        num_axes |= {f"{first}attn.attention_biases": 2, f"{first}mlp.fc1.weight": 2,
                     f"{first}local_conv.conv.weight": 4}  # fmt: skip
    classifier = "head.fc.weight"
    check_telling(weights, num_axes | {classifier: 2}, (classifier,), "TinyViT", min(depths))
    expanded, width = weights[f"{firsts[0]}conv1.conv.weight"].shape[:2]
    hidden = [weights[f"{first}mlp.fc1.weight"].shape for first in firsts[1:]]  # rows, width
    tables = [weights[f"{first}attn.attention_biases"].shape for first in firsts[1:]]
    embed_dims = [width, *(columns for _, columns in hidden)]
    num_heads = [max(1, width // _HEAD_DIM), *(heads for heads, _ in tables)]
    windows = [round(offsets**0.5) for _, offsets in tables]
    side = PATCH_STRIDE * 2 ** (num_stages - 1) * windows[-1]
    expected = window_sizes_for((side, side), num_stages)
    arguments = {
        "img_size": [side, side],
        "embed_dims": embed_dims,
        "depths": depths,
        "num_heads": num_heads,
        "mlp_ratio": to_ratio(*hidden[0]),
        "mbconv_expand_ratio": to_ratio(expanded, width),
        "num_classes": weights["head.fc.weight"].shape[0] if "head.fc.weight" in weights else 0,
        "global_pool": "avg",
    }
    kernel = weights[f"{firsts[1]}local_conv.conv.weight"].shape[-1]
    if kernel != 3:
        arguments["local_conv_size"] = kernel
    if windows != expected[1:]:
        # The first stage has no attention: its window means nothing.
        arguments["window_sizes"] = [expected[0], *windows]
    per_block = [0] * depths[0]
    for heads, depth in zip(num_heads[1:], depths[1:], strict=True):
        per_block += [heads] * depth
    return _NAMES.get(tuple(embed_dims), "tiny_vit_21m_224"), arguments, tuple(per_block)


def to_published(encoder: Encoder) -> Weights:
    """The tensors of TinyViT's file, its classifier included.

    Raises UserError for another network, and for one whose images are normalised otherwise: the
    file does not tell it.
    """
    source = encoder.facts.origin.get("source", "the encoder")
    if not isinstance(encoder, TinyVitEncoder):
        raise UserError(f"{source} is no TinyViT, so its layout can't hold it; choose another one.")
    if (tuple(encoder.facts.mean), tuple(encoder.facts.std)) != IMAGENET_NORM:
        raise UserError(
            f"The images of {source} are not normalised with ImageNet's mean and std, which a "
            "TinyViT's file can't tell; keep the student's own folder."
        )
    state = encoder.model.state_dict()
    # Copies: a file must not hold the storage of more than its tensors.
    return {published_name(name): value.detach().cpu().clone() for name, value in state.items()}
