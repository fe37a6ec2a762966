"""Vision Transformers of Hugging Face ``transformers``, as timm modules.

Their weights are renamed to timm's names, so ``transformers`` itself is not needed. Left out on
purpose: everything but the vision encoder and, where timm has the same, its classifier.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from limbeck.errors import UserError, did_you_mean
from limbeck.models.encoder import Encoder
from limbeck.models.origins.architecture import read_shape, to_architecture, to_ratio
from limbeck.models.origins.checkpoint import assemble, check_patch_size, drop_classifier
from limbeck.models.origins.files import left_out_notes
from limbeck.models.origins.layouts import (
    IMAGENET_NORM,
    Grid,
    Weights,
    depth_of,
    name_list,
    place_registers,
    rename,
    sort_out,
    spread_heads,
)
from limbeck.models.origins.repository import (
    WEIGHT_FILES,
    HubConfig,
    UnaskedError,
    Vision,
    find_file,
    read_all,
    read_hub_config,
    read_licence,
    read_processor,
)
from limbeck.models.origins.timm import load_timm
from limbeck.models.shapes import check_model_name
from limbeck.models.stated import arguments_of, check_kwargs

HALF_NORM = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
CLIP_NORM = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))


@dataclass(frozen=True)
class Family:
    """What a family's config leaves unsaid: its files state only what differs from these.

    ``heads``: how its classifiers are named in timm; only those that timm computes alike.
    """

    norm: tuple[tuple[float, float, float], tuple[float, float, float]]
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-12
    num_heads: int = 12
    heads: dict[str, str] = field(default_factory=dict)


_CLASSIFIER = {"classifier.": "head."}
_CLIP = Family(CLIP_NORM, "quick_gelu", 1e-5)
_SIGLIP = Family(HALF_NORM, "gelu_pytorch_tanh", 1e-6)
_DINOV2 = Family(IMAGENET_NORM, layer_norm_eps=1e-6)

FAMILIES: dict[str, Family] = {
    "vit": Family(HALF_NORM, heads=_CLASSIFIER),
    "deit": Family(
        IMAGENET_NORM, heads={"cls_classifier.": "head.", "distillation_classifier.": "head_dist."}
    ),
    "vit_mae": Family(IMAGENET_NORM),
    "vit_msn": Family(IMAGENET_NORM, layer_norm_eps=1e-6, heads=_CLASSIFIER),
    "ijepa": Family(IMAGENET_NORM),
    "dinov2": _DINOV2,
    "dinov2_with_registers": _DINOV2,
    "dinov3_vit": Family(IMAGENET_NORM, layer_norm_eps=1e-5, num_heads=6),
    "clip": _CLIP,
    "clip_vision_model": _CLIP,
    "siglip": _SIGLIP,
    "siglip_vision_model": _SIGLIP,
}

_ACTIVATIONS = {"gelu": "gelu", "quick_gelu": "quick_gelu", "gelu_pytorch_tanh": "gelu_tanh"}

# Names of the model inside of a model with heads, or of the encoder inside of that.
_PREFIX = re.compile(r"^(vit|deit|dinov2|dinov2_with_registers|ijepa|vision_model)\.")

# In order, each on the result of the last.
_RENAMES: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), name)
    for pattern, name in (
        (r"^embeddings\.(patch_embeddings\.projection|patch_embeddings|patch_embedding)\.",
         "patch_embed.proj."),
        (r"^embeddings\.(cls_token|class_embedding)$", "cls_token"),
        (r"^embeddings\.distillation_token$", "dist_token"),
        (r"^embeddings\.register_tokens$", "reg_token"),
        (r"^embeddings\.(position_embeddings|position_embedding\.weight)$", "pos_embed"),
        (r"^((encoder|model)\.)?layers?\.(\d+)\.", r"blocks.\3."),
        (r"\.(attention\.attention|attention|self_attn)\.([qkv])(uery|ey|alue|_proj)\.",
         r".attn.\2."),
        (r"\.(attention\.output\.dense|attention\.o_proj|self_attn\.out_proj)\.", ".attn.proj."),
        (r"\.(layernorm_before|layer_norm1)\.", ".norm1."),
        (r"\.(layernorm_after|layer_norm2)\.", ".norm2."),
        (r"\.(intermediate\.dense|mlp\.weights_in)\.", ".mlp.fc1."),
        (r"^(blocks\.\d+)\.(output\.dense|mlp\.weights_out|mlp\.down_proj)\.", r"\1.mlp.fc2."),
        (r"\.layer_scale([12])\.lambda1$", r".ls\1.gamma"),
        (r"^pre_layrnorm\.", "norm_pre."),
        (r"^(post_layernorm|layernorm)\.", "norm."),
    )
)  # fmt: skip

# What is no part of the encoder, and the beginnings of its (renamed) names.
_LEFT_OUT = {
    "the text encoder": ("text_model.", "text_projection."),
    "the image-text scale": "logit_",
    "the projection to the text's space": "visual_projection.",
    "the decoder": "decoder.",
    "the mask token of its pre-training": "embeddings.mask_token",
    "a table of indices": "embeddings.position_ids",
    "the pooler": "pooler.",
    "the attention pooling": ("head.probe", "head.attention.", "head.layernorm.", "head.mlp."),
    "the classifier, which timm computes in another way": "classifier.",
}


def load_huggingface(
    place: str | Path,
    *,
    img_size: Grid | None = None,
    patch_size: int | None = None,
    num_heads: int | tuple[int, ...] | None = None,
    num_classes: int | None = None,
) -> Encoder:
    """The encoder of a hub repository (OWNER/NAME) or of a local folder (a Path).

    Raises UserError for a type of model that is not supported, for a config that timm has no
    model for, and for weights that do not fit to the last tensor.
    """
    source = str(place) if isinstance(place, Path) else f"hf:{place}"
    config_file = find_file(place, ("config.json",), source)
    config = read_hub_config(config_file)
    if config is None:
        raise UserError(f"The config.json of {source} names no model type; pass another source.")
    weights_file = find_file(place, WEIGHT_FILES, source)
    licence = read_licence(place, source)
    if "architecture" in config:
        return _load_timm_format(
            config, weights_file, licence, source, img_size=img_size, patch_size=patch_size,
            num_heads=num_heads, num_classes=num_classes,
        )  # fmt: skip
    family = find_family(config, source)
    vision = config.get("vision_config") or config
    weights, left = to_timm_names(read_all(weights_file, place, source), family)
    notes = left_out_notes(left)
    own_heads = vision.get("num_attention_heads", family.num_heads)
    if config["model_type"] == "dinov3_vit":
        weights, architecture = _to_dinov3(weights, vision, own_heads, source, img_size)
        grid, num_prefix_rows = (0, 0), 0  # it has no table of positions
    else:
        shape = read_shape(weights, _config_size(vision))
        # HF's 1e-12 is what timm and the original training code call 1e-6.
        eps = vision.get("layer_norm_eps", family.layer_norm_eps)
        if eps == 1e-12:
            notes.append("The norms' epsilon of 1e-12 is taken as timm's 1e-6.")
        act_layer = _activation(vision.get("hidden_act", family.hidden_act), source)
        heads = spread_heads(own_heads, shape.depth)
        architecture = to_architecture(
            shape, heads, img_size=img_size or shape.img_size, norm_eps=eps, act_layer=act_layer
        )
        grid, num_prefix_rows = shape.grid, shape.num_prefix_rows
    if num_heads is not None:
        depth = architecture["kwargs"]["depth"]
        architecture["num_heads"] = list(spread_heads(num_heads, depth))
    check_patch_size(architecture["kwargs"]["patch_size"], patch_size, source)
    mean, std = _read_norm(place, family, source, notes)
    architecture |= {"mean": mean, "std": std}
    weights = drop_classifier(weights, architecture, num_classes, notes)
    layout = f"Hugging Face {config['model_type']}"
    origin = {"source": source, "layout": layout, "licence": licence, "notes": notes}
    if architecture["kwargs"]["num_classes"]:
        origin |= _read_classes(config)
    return assemble(weights, architecture, origin, grid, num_prefix_rows)


def find_family(config: HubConfig, source: str) -> Family:
    """The family of a config. Raises UserError with the list for an unknown type of model."""
    kind = str(config.get("model_type"))
    if kind not in FAMILIES:
        raise UserError(
            f"{source} is a model of type '{kind}', which is not supported."
            f"{did_you_mean(kind, FAMILIES)} Supported: {', '.join(FAMILIES)}."
        )
    return FAMILIES[kind]


def to_timm_names(weights: Weights, family: Family) -> tuple[Weights, dict[str, list[str]]]:
    """The encoder's tensors in timm's names, and the names left out, by what they are."""
    kept, left = sort_out(
        rename(weights, lambda name: _rename(name, family)),
        lambda name: next((k for k, start in _LEFT_OUT.items() if name.startswith(start)), None),
    )
    if "cls_token" in kept:
        kept["cls_token"] = kept["cls_token"].reshape(1, 1, -1)
    if "pos_embed" in kept and kept["pos_embed"].ndim == 2:
        kept["pos_embed"] = kept["pos_embed"].unsqueeze(0)
    return place_registers(_fuse_qkv(kept)), left


def _rename(name: str, family: Family) -> str:
    name = _PREFIX.sub("", name)
    for pattern, replacement in _RENAMES:
        name = pattern.sub(replacement, name)
    for start, replacement in family.heads.items():
        if name.startswith(start):
            return replacement + name.removeprefix(start)
    return name


def _fuse_qkv(weights: Weights) -> Weights:
    """Queries, keys and values as one tensor wherever all three are there."""
    fused = dict(weights)
    for name in weights:
        start, is_query, end = name.partition(".attn.q.")
        parts = [f"{start}.attn.{letter}.{end}" for letter in "qkv"]
        shapes = {weights[part].shape for part in parts if part in weights}
        # What does not belong together stays apart, and is then refused by name.
        if is_query and all(part in weights for part in parts) and len(shapes) == 1:
            fused[f"{start}.attn.qkv.{end}"] = torch.cat([fused.pop(part) for part in parts])
    return fused


def _activation(hidden_act: str, source: str) -> str:
    if hidden_act not in _ACTIVATIONS:
        raise UserError(
            f"{source} has the activation '{hidden_act}'; supported are {', '.join(_ACTIVATIONS)}."
        )
    return _ACTIVATIONS[hidden_act]


def _config_size(vision: Vision) -> Grid | None:
    sides = vision.get("image_size")
    return None if sides is None else (sides[0], sides[-1])


def _to_dinov3(
    weights: Weights, vision: Vision, num_heads: int, source: str, img_size: Grid | None
) -> tuple[Weights, dict[str, Any]]:
    """Weights and architecture of timm's DINOv3 (its Eva class)."""
    is_gated = bool(vision.get("use_gated_mlp", False))
    renames = [(".attn.q.bias", ".attn.q_bias"), (".attn.v.bias", ".attn.v_bias"),
               (".ls1.gamma", ".gamma_1"), (".ls2.gamma", ".gamma_2"),
               (".mlp.gate_proj.", ".mlp.fc1_g."),
               (".mlp.up_proj.", ".mlp.fc1_x." if is_gated else ".mlp.fc1.")]  # fmt: skip

    def to_name(name: str) -> str:
        for old, new in renames:
            name = name.replace(old, new)
        return name

    renamed = rename(weights, to_name)
    usual = {"hidden_act": "gelu", "layer_norm_eps": 1e-5, "key_bias": False}
    said = usual | vision
    wanted = usual | {"hidden_act": "silu" if is_gated else "gelu"}
    for key, value in wanted.items():
        if said[key] != value:
            raise UserError(
                f"{source} has {key} = {said[key]}; timm's DINOv3 has {value}, "
                "so it can't be loaded; choose another teacher."
            )
    hidden = "blocks.0.mlp.fc1_x.weight" if is_gated else "blocks.0.mlp.fc1.weight"
    num_axes = {hidden: 2, "patch_embed.proj.weight": 4, "reg_token": 3}
    wrong = [n for n, axes in num_axes.items() if n not in renamed or renamed[n].ndim != axes]
    wrong += [n for n in num_axes if n != "reg_token" and n not in wrong and not renamed[n].numel()]
    if wrong or depth_of(renamed) > len(renamed):
        raise UserError(
            f"{source} is no whole DINOv3 ({', '.join(wrong) or 'blocks'} missing or of another "
            f"form) among {len(weights)} tensors: {name_list(weights)}."
        )
    embed_dim, _, _, patch_size = renamed["patch_embed.proj.weight"].shape
    depth = depth_of(renamed)
    size = img_size or _config_size(vision) or (224, 224)
    num_reg_tokens = renamed["reg_token"].shape[1]
    if not num_reg_tokens:
        del renamed["reg_token"]  # Hugging Face keeps an empty one
    kwargs: dict[str, Any] = {
        "img_size": size[0] if size[0] == size[1] else list(size),
        "patch_size": patch_size,
        "embed_dim": embed_dim,
        "depth": depth,
        "num_heads": num_heads,
        "mlp_ratio": to_ratio(renamed[hidden].shape[0], embed_dim),
        "num_reg_tokens": num_reg_tokens,
        "rope_temperature": vision.get("rope_theta", 100.0),
        "qkv_bias": "blocks.0.attn.q_bias" in renamed,
        "num_classes": 0,
        "global_pool": "token",
    }
    if is_gated:
        # Aligned to 1: the gated MLP with separate projections, of exactly this width.
        kwargs |= {"swiglu_mlp": True, "swiglu_align_to": 1}
    return renamed, {
        "kind": "timm",
        "name": "vit_small_patch16_dinov3_qkvb",
        "kwargs": kwargs,
        "num_heads": [num_heads] * depth,
    }


def _load_timm_format(
    config: HubConfig, weights_file: Path, licence: str | None, source: str, **asked: Any
) -> Encoder:
    """timm's own repositories: the config names timm's model and says the rest."""
    name, model_args = config["architecture"], config.get("model_args", {})
    check_model_name(name, any_model=True)
    check_kwargs(name, model_args, arguments_of(name))
    told = {"license": licence, "label_names": config.get("label_names")}
    facts = told | (config.get("pretrained_cfg") or config)
    return load_timm(name, weights_file=weights_file, config=facts, model_args=model_args, **asked)


def _read_norm(
    place: str | Path, family: Family, source: str, notes: list[str]
) -> tuple[list[float], list[float]]:
    """Mean and std for pixels in 0..1 that do what the folder's image processor does to 0..255.

    That multiplies by ``rescale_factor`` first, so ours are its own divided by 255 of them.
    """
    where = "No preprocessor_config.json"
    try:
        said = read_processor(place, source)
    except UnaskedError:
        said, where = None, "The hub could not be asked for preprocessor_config.json"
    if said is None or not said.keys() & {"image_mean", "image_std", "do_normalize"}:
        where = where if said is None else "It names no mean and std"
        notes.append(f"{where}: mean and std are the usual ones of its family.")
    said = said or {}
    is_normalised = said.get("do_normalize", True)
    mean = said.get("image_mean", list(family.norm[0])) if is_normalised else [0.0] * 3
    std = said.get("image_std", list(family.norm[1])) if is_normalised else [1.0] * 3
    scale = 255 * said.get("rescale_factor", 1 / 255)
    if not said.get("do_rescale", True):
        if max(mean) <= 1:
            raise UserError(
                f"The image processor of {source} has do_rescale false, so that nothing tells "
                "whether pixels go in as 0..255 or as 0..1; write do_rescale true into its file "
                'for 0..1, or "do_rescale": true, "rescale_factor": 1.0 for 0..255.'
            )
        scale = 255.0
    if abs(scale - 1) < 1e-6:  # 1/255 as it is written, in some files with six digits
        return mean, std
    notes.append(f"Pixels in 0..1 are multiplied by {scale:g}, as its rescale_factor says.")
    return [value / scale for value in mean], [value / scale for value in std]


def _read_classes(config: HubConfig) -> dict[str, Any]:
    """The names of the classes under "classes", in their order; nothing where none were given."""
    named = config.get("id2label", {})
    classes = [named.get(str(index)) for index in range(len(named))]
    # What transformers writes by itself are no names.
    is_named = all(name not in (None, f"LABEL_{index}") for index, name in enumerate(classes))
    return {"classes": list(map(str, classes))} if classes and is_named else {}


def read_mae_decoder(place: str | Path) -> tuple[Weights, dict[str, Any]] | None:
    """The decoder of a ViTMAEForPreTraining by MAE's names, and its facts; None without one.

    The facts are "num_heads" and, where it computes otherwise, "unlike_mae", in words. ``place`` is
    a repository's name or a folder. Raises UserError where it can't be read.
    """
    source = str(place) if isinstance(place, Path) else f"hf:{place}"
    config = read_hub_config(find_file(place, ("config.json",), source))
    if config is None or config.get("model_type") != "vit_mae":
        return None
    weights = read_all(find_file(place, WEIGHT_FILES, source), place, source)
    # The second is what transformers 5 writes, the first what is published.
    start, layers = "decoder.", ("decoder_layers.", "decoder_encoder.layer.")
    own = {n.removeprefix(start): v for n, v in weights.items() if n.startswith(start)}
    if not own:
        return None
    blocks = {n.removeprefix("decoder_"): v for n, v in own.items() if n.startswith(layers)}
    named, _ = to_timm_names(blocks, FAMILIES["vit_mae"])
    others = {name: value for name, value in own.items() if not name.startswith(layers)}
    renamed = others | {f"decoder_{name}": value for name, value in named.items()}
    # 16 and 8 are what transformers' config stands for where it does not say.
    facts = {
        "num_heads": config.get("decoder_num_attention_heads", 16),
        "depth": config.get("decoder_num_hidden_layers", 8),
    }
    hidden_act = config.get("hidden_act", FAMILIES["vit_mae"].hidden_act)
    if hidden_act != "gelu":
        facts["unlike_mae"] = f"the activation '{hidden_act}'"
    return renamed, facts
