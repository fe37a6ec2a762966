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


def mae_full(width=32, decoder_width=16, decoder_depth=1, **shape):
    encoder = mae_encoder(width, **shape)
    blocks = encoder_shapes(decoder_width, depth=decoder_depth)
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


def g2sd(width=192, decoder_width=128, decoder_depth=4, teacher=(48, 40), **shape):
    """G2SD's student: MAE's tensors and two MLPs, to the teacher's decoder and encoder width.

    ``teacher``: the widths of its encoder and of its decoder.
    """
    weights = mae_full(width, decoder_width, decoder_depth, **shape)
    shapes = {}
    sizes = {"encoderfeature_pred": (width, teacher[0])}
    for name, (own, theirs) in (
        {"decoderfeature_pred": (decoder_width, teacher[1])} | sizes
    ).items():
        shapes |= {f"{name}.fc1.weight": (theirs, own), f"{name}.fc1.bias": (theirs,)}
        shapes |= {f"{name}.fc2.weight": (theirs, theirs), f"{name}.fc2.bias": (theirs,)}
    return weights | draw(shapes, seed=2)


def in_g2sd(network):
    """The entries of its checkpoints."""
    args = argparse.Namespace(model="student", lr=2.4e-3)
    beside = {"optimizer": {"state": {}, "param_groups": []}, "scaler": {"scale": 1.0}}
    return {"model": network, "epoch": 299, "args": args} | beside


def in_mae_lite(network, **beside):
    """The entries and names of MAE-Lite's checkpoints; ``beside`` are other networks in the model.

    Keys as on several GPUs, where DistributedDataParallel adds "module.".
    """
    weights = {f"module.model.{name}": value for name, value in network.items()}
    for prefix, tensors in beside.items():
        weights |= {f"module.{prefix}.{name}": value for name, value in tensors.items()}
    beyond = {"optimizer": {"state": {}}, "scheduler": {}, "scaler": {"scale": 1.0}}
    scores = {"best_top1": torch.tensor(78.0), "best_top5": 94.0, "best_top1_epoch": 3}
    return {"start_epoch": 4, "model": weights} | beyond | scores


def score_mixer(num_heads=12):
    return {"adapter11.weight": torch.rand(num_heads, num_heads, 1, 1)}


def d_mae(network, teacher):
    return in_mae_lite(network, tch_model=teacher, attn_adapter=score_mixer())


def with_spare_block(network, width=192):
    """D2-MAE's: one block more, of norm1 and qkv alone."""
    whole = encoder_shapes(width, depth=1)
    parts = ("norm1", "attn.qkv")
    index = 1 + max(int(name.split(".")[1]) for name in network if name.startswith("blocks."))
    shapes = {
        name.replace("blocks.0.", f"blocks.{index}."): shape
        for name, shape in whole.items()
        if name.startswith(tuple(f"blocks.0.{part}." for part in parts))
    }
    return network | draw(shapes, seed=2)


def moco_v3(width=192, **shape):
    """MoCo-v3's two encoders with 3-layer projectors, and its predictor."""
    base = mae_encoder(width, **shape)
    half = width // 2
    base["pos_embed"] = base["pos_embed"].roll(half, dims=2)
    sizes = ((width, 24), (24, 24), (24, 8))
    projector = {f"head.{3 * k}.weight": torch.rand(o, i) for k, (i, o) in enumerate(sizes)}
    norm = {f"head.{3 * k + 1}.running_mean": torch.rand(o) for k, (_, o) in enumerate(sizes)}
    norm |= {"head.1.num_batches_tracked": torch.tensor(3)}
    both = base | projector | norm
    weights = {f"module.base_encoder.{name}": value for name, value in both.items()}
    weights |= {f"module.momentum_encoder.{name}": value + 1 for name, value in both.items()}
    weights |= {"module.predictor.0.weight": torch.rand(8, 8)}
    return base, {"start_epoch": 4, "model": weights, "scheduler": {}, "best_top1": 0.0}


def with_relative(weights, side=4, num_heads=12, scale=True):
    """BEiT-like biases of relative positions, their indices, and layer scale, in every block."""
    weights = dict(weights)
    width = weights["cls_token"].shape[-1]
    depth = 1 + max(int(name.split(".")[1]) for name in weights if name.startswith("blocks."))
    for index in range(depth):
        attn = f"blocks.{index}.attn"
        weights[f"{attn}.relative_position_bias_table"] = torch.randn(
            (2 * side - 1) ** 2 + 3, num_heads
        )
        weights[f"{attn}.relative_position_index"] = relative_index(side)
        if scale:
            weights |= {f"blocks.{index}.gamma_{k}": torch.rand(width) for k in (1, 2)}
    return weights


def relative_index(side):
    """Slow: query and key patch by their rows and columns; the CLS token last."""
    span = 2 * side - 1
    index = torch.zeros(side * side + 1, side * side + 1, dtype=torch.long)
    for query in range(side * side):
        for key in range(side * side):
            rows, columns = query // side - key // side, query % side - key % side
            index[1 + query, 1 + key] = (rows + side - 1) * span + columns + side - 1
    index[0, 1:], index[1:, 0], index[0, 0] = span * span, span * span + 1, span * span + 2
    return index


def with_separate_bias(weights):
    """Biases for queries and values in BEiT's names, none for keys."""
    split = {}
    for name, value in weights.items():
        if name.endswith("attn.qkv.bias"):
            queries, _, values = value.chunk(3)
            start = name.removesuffix("qkv.bias")
            split |= {f"{start}q_bias": queries.clone(), f"{start}v_bias": values.clone()}
        else:
            split[name] = value
    return split


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


def encoder_of_deit(width=192, num_classes=5, **shape):
    """DeiT's with a distillation token: two positions that are no patch's, two classifiers."""
    shapes = encoder_shapes(width, num_prefix=2, **shape) | {"dist_token": (1, 1, width)}
    for head in ("head", "head_dist"):
        shapes |= {f"{head}.weight": (num_classes, width), f"{head}.bias": (num_classes,)}
    return draw(shapes)


def g2sd_specific(width=192, num_classes=5, **shape):
    """A distillation token and a second classifier; the positions are those of a plain ViT."""
    shapes = encoder_shapes(width, **shape) | {"dist_token": (1, 1, width)}
    for head in ("head", "head_dist"):
        shapes |= {f"{head}.weight": (num_classes, width), f"{head}.bias": (num_classes,)}
    return draw(shapes)


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
    is_last = "dist_token" in weights and weights["pos_embed"].shape[1] == 1 + x.shape[1]
    names = ("cls_token",) if is_last else ("cls_token", "dist_token")
    prefix = [weights[name] for name in names if name in weights]
    x = torch.cat([*(token.expand(len(x), -1, -1) for token in prefix), x], dim=1)
    x = x + weights["pos_embed"]
    if is_last:  # G2SD: at the end of the sequence, without a position
        x = torch.cat((x, weights["dist_token"].expand(len(x), -1, -1)), dim=1)
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
        bias = block.get("attn.qkv.bias")
        if "attn.q_bias" in block:
            none = torch.zeros_like(block["attn.q_bias"])
            bias = torch.cat((block["attn.q_bias"], none, block["attn.v_bias"]))
        qkv = F.linear(h, block["attn.qkv.weight"], bias)
        q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in qkv.chunk(3, -1))
        scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
        if "attn.relative_position_bias_table" in block:
            pairs = block["attn.relative_position_index"]
            scores = scores + block["attn.relative_position_bias_table"][pairs].permute(2, 0, 1)
        attn = scores.softmax(-1)
        h = (attn @ v).transpose(1, 2).flatten(2)
        h = F.linear(h, block["attn.proj.weight"], block["attn.proj.bias"])
        x = x + h * block.get("ls1.gamma", block.get("gamma_1", torch.ones(())))
        h = _norm(block, "norm2", x)
        h = F.gelu(F.linear(h, block["mlp.fc1.weight"], block["mlp.fc1.bias"]))
        h = F.linear(h, block["mlp.fc2.weight"], block["mlp.fc2.bias"])
        x = x + h * block.get("ls2.gamma", block.get("gamma_2", torch.ones(())))
    return x if norm is None else _norm(weights, norm, x)


def run_decoder(weights, tokens, ids_keep, heads, last_block=None):
    """MAE's decoder, one image at a time: pixels (B, L, patch_size**2 * 3).

    With ``last_block`` all tokens (B, 1 + L, width) after this block, from 0.
    """
    embedded = F.linear(tokens, weights["decoder_embed.weight"], weights["decoder_embed.bias"])
    rows = []
    for sample, kept in zip(embedded, ids_keep.tolist(), strict=True):
        places = [weights["mask_token"][0, 0]] * (weights["decoder_pos_embed"].shape[1] - 1)
        for number, patch in enumerate(kept):
            places[patch] = sample[1 + number]
        rows.append(torch.stack([sample[0], *places]))
    x = torch.stack(rows) + weights["decoder_pos_embed"]
    depth = 1 + max(int(n.split(".")[1]) for n in weights if n.startswith("decoder_blocks."))
    for index in range(depth if last_block is None else last_block + 1):
        start = f"decoder_blocks.{index}."
        block = {n.removeprefix(start): v for n, v in weights.items() if n.startswith(start)}
        h = _norm(block, "norm1", x)
        qkv = F.linear(h, block["attn.qkv.weight"], block["attn.qkv.bias"])
        q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in qkv.chunk(3, -1))
        attn = (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(-1)
        h = (attn @ v).transpose(1, 2).flatten(2)
        x = x + F.linear(h, block["attn.proj.weight"], block["attn.proj.bias"])
        h = _norm(block, "norm2", x)
        h = F.gelu(F.linear(h, block["mlp.fc1.weight"], block["mlp.fc1.bias"]))
        x = x + F.linear(h, block["mlp.fc2.weight"], block["mlp.fc2.bias"])
    if last_block is not None:
        return x
    x = _norm(weights, "decoder_norm", x)
    return F.linear(x, weights["decoder_pred.weight"], weights["decoder_pred.bias"])[:, 1:]


def _norm(weights, name, x):
    return F.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], 1e-6)


def save_published(file: Path, weights, **others):
    """A file as the authors' training programs write it, with their Namespace."""
    args = argparse.Namespace(model="mae_vit_base_patch16", lr=1e-3, output_dir="./out")
    torch.save(
        {"model": weights, "optimizer": {"state": {}}, "epoch": 3, "args": args} | others, file
    )
    return file
