"""Small random-weight representatives of every supported family of vision Transformers."""

import timm
import torch

from limbeck.models.timm_encoder import TimmEncoder
from limbeck.models.vit import build_encoder

IMG_SIZE, PATCH_SIZE, DEPTH, EMBED_DIM, NUM_HEADS = 32, 8, 3, 32, 2

# Family: (timm name, what differs from the shared small shape).
FAMILIES: dict[str, tuple[str, dict]] = {
    "augreg": ("vit_tiny_patch16_224", {}),
    "mae": ("vit_base_patch16_224", {"num_classes": 0}),
    "mean-pooled": ("vit_tiny_patch16_224", {"global_pool": "avg"}),
    "qk-norm": ("vit_tiny_patch16_224", {"qk_norm": True}),
    "post-norm": ("vit_base_patch16_rpn_224", {"init_values": 1.0}),
    "hybrid": ("vit_tiny_r_s16_p8_224", {"patch_size": 1}),
    "deit-distilled": ("deit_tiny_distilled_patch16_224", {}),
    "deit3": ("deit3_small_patch16_224", {}),
    "clip": ("vit_base_patch16_clip_quickgelu_224", {}),
    "siglip": ("vit_base_patch16_siglip_224", {"num_classes": 4}),
    "siglip-gap": ("vit_base_patch16_siglip_gap_224", {"num_classes": 4}),
    "dinov2": ("vit_small_patch14_dinov2", {"num_classes": 0}),
    "dinov2-registers-swiglu": ("vit_giant_patch14_reg4_dinov2", {"num_classes": 0}),
    "dinov3": ("vit_small_patch16_dinov3", {"num_classes": 0}),
    "dinov3-swiglu": ("vit_huge_plus_patch16_dinov3_qkvb", {"num_classes": 0}),
    "rope-mixed": ("vit_small_patch16_rope_mixed_ape_224", {}),
    "perception-encoder": ("vit_pe_core_tiny_patch16_384", {"num_classes": 4}),
    "grouped-keys": ("vit_base_patch16_sapiens2", {"num_kv_heads": 1, "num_classes": 0}),
    "eva": ("eva_giant_patch14_224", {}),
    "eva02-split-qkv": ("eva02_base_patch14_224", {}),
    "eva02-fused-qkv": ("eva02_tiny_patch14_224", {}),
    "eva02-clip": ("eva02_base_patch16_clip_224", {}),
    "eva02-post-norm": ("eva02_enormous_patch14_clip_224", {}),
    "beit": ("beit_base_patch16_224", {}),
    "beit2-shared-bias": (
        "beitv2_base_patch16_224",
        {"use_rel_pos_bias": False, "use_shared_rel_pos_bias": True},
    ),
}
HIERA = {"embed_dim": 16, "num_heads": 2, "stages": [1, 1, 2], "mask_unit_size": [4, 4]}
TINY_VIT = {"embed_dims": [8, 16, 24], "depths": [2, 2, 2], "num_heads": [1, 2, 4]}
SWIN = {"embed_dim": 16, "num_heads": [2, 4], "depths": [2, 2], "window_size": 4}
# Each with its own shape: 16 (or 4) last tokens of 2 x 2 mask units, and of 4 x 4 = one window.
HIERARCHICAL: dict[str, tuple[str, dict]] = {
    "hiera": ("hiera_tiny_224", HIERA | {"mask_unit_attn": [True, True, False], "q_pool": 1}),
    "hiera-pooled": (
        "hiera_base_224", HIERA | {"mask_unit_attn": [True, False, False], "q_pool": 2}
    ),
    "hiera-windowed-positions": (
        "hiera_small_abswin_256",
        HIERA
        | {"mask_unit_attn": [True, True, False], "q_pool": 1, "global_pos_size": [3, 3]},
    ),
    "swin": ("swin_tiny_patch4_window7_224", SWIN),
    "swin-padded": ("swin_tiny_patch4_window7_224", SWIN | {"window_size": 3, "num_classes": 0}),
    "tiny-vit": ("tiny_vit_5m_224", TINY_VIT),
    "tiny-vit-padded": ("tiny_vit_5m_224", TINY_VIT | {"window_sizes": [1, 3, 2]}),
}  # fmt: skip
FAMILIES |= HIERARCHICAL
# The oldest timm supported does not have all of them yet.
FAMILIES = {family: entry for family, entry in FAMILIES.items() if timm.is_model(entry[0])}
BIASED = {"use_abs_pos_emb": True, "use_rel_pos_bias": True, "init_values": 0.1}
FAMILIES |= {
    "distilled-last": ("vit_distilled_last", {}),
    "cls-distilled": ("vit_cls_distilled", {}),
    "beit-qkv-bias": ("beit", BIASED),
    "tinymim-star": ("tinymim_star", {"out_dim": 40}),
    "tinymim-star-rel-pos": (
        "tinymim_star_rel_pos",
        {"out_dim": 40, "init_values": 0.1, "num_classes": 0},
    ),
    "tinymim-star-narrow-norm": ("tinymim_star", {"out_dim": 40, "fc_norm_dim": EMBED_DIM}),
}
KINDS = {
    "tinymim_star": "tinymim-star",
    "vit_distilled_last": "distilled-last",
    "vit_cls_distilled": "cls-distilled",
    "beit": "beit-qkv-bias",
    "tinymim_star_rel_pos": "tinymim-star-rel-pos",
}
PLAIN = [family for family in FAMILIES if family not in HIERARCHICAL]
CANT_DROP_PATCHES = {
    *("beit", "beit2-shared-bias", "beit-qkv-bias", "tinymim-star-rel-pos"),
    *("swin", "swin-padded", "tiny-vit", "tiny-vit-padded"),
}


def architecture_of(family: str) -> dict:
    name, differences = FAMILIES[family]
    shape = {
        "img_size": IMG_SIZE,
        "patch_size": PATCH_SIZE,
        "embed_dim": EMBED_DIM,
        "depth": DEPTH,
        "num_heads": NUM_HEADS,
        "num_classes": 5,
    }
    if family in HIERARCHICAL:
        shape = {"img_size": IMG_SIZE, "num_classes": 5}
    return {
        "kind": KINDS.get(name, "timm"),
        "name": name,
        "kwargs": shape | differences,
        "mean": [0.4, 0.5, 0.6],
        "std": [0.2, 0.25, 0.3],
    }


def small_encoder(family: str) -> TimmEncoder:
    """In evaluation mode, with every weight disturbed: fresh ones are often 0, 1 or 1e-5."""
    torch.manual_seed(0)
    encoder = build_encoder(architecture_of(family)).eval()
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return encoder


def small_images(num: int = 2) -> torch.Tensor:
    return torch.rand(num, 3, IMG_SIZE, IMG_SIZE, generator=torch.Generator().manual_seed(1))
