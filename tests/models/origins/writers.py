"""Writes the published layouts with random weights, and runs them in plain tensor code.

The reference below knows nothing of timm: it is written from the ViT paper's equations and the
published key lists, so that loading is checked against something independent.
"""

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F

IMAGENET_MEAN = torch.tensor((0.485, 0.456, 0.406)).view(3, 1, 1)
IMAGENET_STD = torch.tensor((0.229, 0.224, 0.225)).view(3, 1, 1)
NORM_PARTS = ("weight", "bias")


def encoder_shapes(width, depth=2, patch=8, side=4, hidden=4, num_prefix=1, norm=True):
    """Names and shapes of a plain ViT (MAE's and TinyMIM's 12 * depth + 6 tensors)."""
    shapes = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, num_prefix + side * side, width),
        "patch_embed.proj.weight": (width, 3, patch, patch),
        "patch_embed.proj.bias": (width,),
    }
    for index in range(depth):
        block = f"blocks.{index}"
        for name, rows, columns in (
            ("attn.qkv", 3 * width, width),
            ("attn.proj", width, width),
            ("mlp.fc1", hidden * width, width),
            ("mlp.fc2", width, hidden * width),
        ):
            shapes |= {f"{block}.{name}.weight": (rows, columns), f"{block}.{name}.bias": (rows,)}
        for name in ("norm1", "norm2"):
            shapes |= {f"{block}.{name}.{part}": (width,) for part in NORM_PARTS}
    if norm:
        shapes |= {f"norm.{part}": (width,) for part in NORM_PARTS}
    return shapes


def draw(shapes, seed=0):
    """Random weights of a scale at which every part matters."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in shapes.items():
        value = torch.randn(shape, generator=generator)
        scale = 0.5 if len(shape) == 1 or "token" in name or "pos" in name else shape[-1] ** -0.5
        weights[name] = value * scale + (1.0 if "norm" in name and name.endswith("weight") else 0.0)
    return weights


def mae_encoder(width=32, **shape):
    weights = draw(encoder_shapes(width, **shape))
    weights["pos_embed"][:, 0] = 0  # the sin-cos table's row of the CLS token
    return weights


def mae_full(width=32, decoder_width=16, **shape):
    encoder = mae_encoder(width, **shape)
    blocks = encoder_shapes(decoder_width, depth=1)
    shapes = {
        "mask_token": (1, 1, decoder_width),
        "decoder_pos_embed": (1, encoder["pos_embed"].shape[1], decoder_width),
        "decoder_embed.weight": (decoder_width, width),
        "decoder_embed.bias": (decoder_width,),
        "decoder_pred.weight": (192, decoder_width),
        "decoder_pred.bias": (192,),
    }
    shapes |= {f"decoder_{n}": s for n, s in blocks.items() if n.startswith(("blocks.", "norm."))}
    return encoder | draw(shapes, seed=1)


def tinymim(width=192, **shape):
    """The end of the last block and the final norm as they were initialised."""
    weights = mae_encoder(width, **shape)
    last = max(int(name.split(".")[1]) for name in weights if name.startswith("blocks."))
    for norm in (f"blocks.{last}.norm2", "norm"):
        weights[f"{norm}.weight"].fill_(1.0)
        weights[f"{norm}.bias"].zero_()
    return weights


def fine_tuned(width=32, num_classes=5, **shape):
    shapes = encoder_shapes(width, norm=False, **shape)
    shapes |= {f"fc_norm.{part}": (width,) for part in NORM_PARTS}
    shapes |= {"head.weight": (num_classes, width), "head.bias": (num_classes,)}
    return draw(shapes)


def tinymim_tstar(width=192, wide=40, fc_norm_dim=40, num_classes=5, **shape):
    shapes = encoder_shapes(width, norm=False, num_prefix=2, **shape)
    shapes["dist_token"] = (1, 1, width)
    shapes |= {f"conv1x1.0.{part}": (width,) for part in NORM_PARTS}
    shapes |= {"conv1x1.1.weight": (wide, width), "conv1x1.1.bias": (wide,)}
    shapes |= {f"fc_norm.{part}": (fc_norm_dim,) for part in NORM_PARTS}
    for head in ("head", "head_dist"):
        shapes |= {f"{head}.weight": (num_classes, wide), f"{head}.bias": (num_classes,)}
    weights = draw(shapes)
    for part in NORM_PARTS:  # "norm" is not in the name
        weights[f"conv1x1.0.{part}"] = weights[f"blocks.0.norm1.{part}"].clone()
    return weights


def dinov2(width=32, num_registers=0, **shape):
    shapes = encoder_shapes(width, **shape) | {"mask_token": (1, width)}
    depth = max(int(name.split(".")[1]) for name in shapes if name.startswith("blocks.")) + 1
    for index in range(depth):
        shapes |= {f"blocks.{index}.ls{part}.gamma": (width,) for part in (1, 2)}
    if num_registers:
        shapes["register_tokens"] = (1, num_registers, width)
    return draw(shapes)


def run_reference(weights, images, num_heads, norm="norm"):
    """Final tokens (B, N, D); ``num_heads`` per block; ``norm`` None: before the last norm."""
    x = (images - IMAGENET_MEAN) / IMAGENET_STD
    patch = weights["patch_embed.proj.weight"].shape[-1]
    x = F.conv2d(x, weights["patch_embed.proj.weight"], weights["patch_embed.proj.bias"], patch)
    x = x.flatten(2).transpose(1, 2)
    prefix = [weights[name] for name in ("cls_token", "dist_token") if name in weights]
    x = torch.cat([*(token.expand(len(x), -1, -1) for token in prefix), x], dim=1)
    x = x + weights["pos_embed"]
    if "register_tokens" in weights:  # inserted after the positions were added
        registers = weights["register_tokens"].expand(len(x), -1, -1)
        x = torch.cat((x[:, :1], registers, x[:, 1:]), dim=1)
    for index, heads in enumerate(num_heads):
        block = {
            name.removeprefix(f"blocks.{index}."): value
            for name, value in weights.items()
            if name.startswith(f"blocks.{index}.")
        }
        h = _norm(block, "norm1", x)
        qkv = F.linear(h, block["attn.qkv.weight"], block["attn.qkv.bias"])
        q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in qkv.chunk(3, -1))
        attn = (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(-1)
        h = (attn @ v).transpose(1, 2).flatten(2)
        h = F.linear(h, block["attn.proj.weight"], block["attn.proj.bias"])
        x = x + h * block.get("ls1.gamma", torch.ones(()))
        h = _norm(block, "norm2", x)
        h = F.gelu(F.linear(h, block["mlp.fc1.weight"], block["mlp.fc1.bias"]))
        h = F.linear(h, block["mlp.fc2.weight"], block["mlp.fc2.bias"])
        x = x + h * block.get("ls2.gamma", torch.ones(()))
    return x if norm is None else _norm(weights, norm, x)


def _norm(weights, name, x):
    return F.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], 1e-6)


def save_published(file: Path, weights, **others):
    """A file as the authors' training programs write it, with their Namespace."""
    args = argparse.Namespace(model="mae_vit_base_patch16", lr=1e-3, output_dir="./out")
    torch.save(
        {"model": weights, "optimizer": {"state": {}}, "epoch": 3, "args": args} | others, file
    )
    return file
