"""Relative positions for a plain ViT that is fine-tuned: a bias per block, and layer scale.

MAE-Lite's variant (arXiv 2205.14443, 2404.12210) is BEiT's block (arXiv 2106.08254): every block
has a table of biases (one per head and distance, three more for the class token) that starts at 0.
The release of 2023 also has scales of both branches that start at 0.1, that of 2025 has none. The
absolute positions stay. Left out: BEiT's smaller start of the layers that end a branch, which
loaded weights overwrite.
"""

import re
from typing import Any

import torch

from limbeck.errors import UserError
from limbeck.models.beit_bias import TABLE
from limbeck.models.heads import is_plain, plain_shape
from limbeck.models.options import RelPos
from limbeck.models.timm_encoder import TimmEncoder
from limbeck.models.tinymim_star import TinyMimStar
from limbeck.models.vit import VitEncoder, build_encoder

# Any plain BEiT of timm: its sizes are stated.
BUILT_AS: dict[RelPos, dict[str, str]] = {
    "qkv-bias": {"kind": "beit-qkv-bias", "name": "beit_qkv_bias"},
    "qv-bias": {"kind": "timm", "name": "beit_base_patch16_224"},
}
_FRESH = (TABLE, "gamma_1", "gamma_2")
_FRESH_OF: dict[RelPos, tuple[str, ...]] = {
    "qkv-bias": _FRESH,
    "qv-bias": (*_FRESH, "q_bias", "v_bias"),
}
_DROPPED: dict[RelPos, tuple[str, ...]] = {"qkv-bias": (), "qv-bias": ("attn.qkv.bias",)}

_PLAIN = re.compile(
    r"cls_token|pos_embed|"
    r"(patch_embed\.proj|norm|fc_norm|head|blocks\.\d+\.(norm[12]|attn\.(qkv|proj)|mlp\.fc[12]))"
    r"\.(weight|bias)"
)


def can_have_rel_pos(encoder: TimmEncoder) -> bool:
    """Whether ``with_rel_pos`` takes it."""
    if _is_star(encoder):
        return len(set(encoder.facts.num_heads)) == 1
    if not isinstance(encoder, VitEncoder) or not is_plain(encoder):
        return False
    names = encoder.model.state_dict().keys()
    has_bias = "blocks.0.attn.qkv.bias" in names
    return has_bias and len(set(encoder.facts.num_heads)) == 1 and all(map(_PLAIN.fullmatch, names))


def with_rel_pos(encoder: VitEncoder, rel_pos: RelPos, layer_scale: float = 0.0) -> VitEncoder:
    """The same weights with a relative position bias in every block.

    Scales of both branches start at ``layer_scale``; 0 is without them.

    A TinyMIM* loses its classifiers (``TinyMimStarRelPos``).

    "qkv-bias" keeps the biases of queries, keys and values. "qv-bias" is timm's BEiT as it is:
    biases of queries and values only, which start at 0 (as in the released 79.0 % run, whose
    pre-trained biases did not load). Raises UserError for anything but a plain ViT with one
    classifier, class token and absolute positions, and where blocks differ in their head counts.
    """
    facts = encoder.facts
    if _is_star(encoder) and can_have_rel_pos(encoder):
        kwargs = plain_shape(encoder) | {"out_dim": facts.output_dim, "init_values": layer_scale}
        made = _built(encoder, "tinymim-star-rel-pos", "tinymim_star_rel_pos", kwargs)
        own, old = made.model.state_dict(), encoder.model.state_dict()
        made.model.load_state_dict(own | {name: old[name] for name in old if name in own})
        return made
    if not is_plain(encoder):
        raise UserError(
            f"rel_pos needs a plain ViT with a class token, absolute positions and one classifier, "
            f"and {facts.architecture['name']} is none; leave --rel-pos out."
        )
    if len(set(facts.num_heads)) > 1:
        raise UserError(
            f"rel_pos needs the same head count in all blocks, which have "
            f"{', '.join(map(str, facts.num_heads))}; set --num-heads."
        )
    kwargs = plain_shape(encoder) | {
        "num_classes": facts.num_classes,
        "global_pool": encoder.model.global_pool,
        "use_abs_pos_emb": True,
        "use_rel_pos_bias": True,
        "init_values": layer_scale,
    }
    made = _built(encoder, **BUILT_AS[rel_pos], kwargs=kwargs)
    weights = {
        name: value
        for name, value in encoder.model.state_dict().items()
        if not name.endswith(_DROPPED[rel_pos])
    }
    own = made.model.state_dict()
    kept = {name for name in own if not name.endswith(_FRESH_OF[rel_pos])}
    if kept != weights.keys():
        odd = ", ".join(sorted(kept ^ weights.keys())[:5])
        raise UserError(
            f"rel_pos has no place for what differs in this network from a plain ViT: {odd}; leave "
            "--rel-pos out."
        )
    made.model.load_state_dict(own | weights)
    return made


def _is_star(encoder: TimmEncoder) -> bool:
    """One whose tokens get wider by nothing but the wide layer."""
    return isinstance(encoder.model, TinyMimStar) and not encoder.model.norms_before


def _built(encoder: VitEncoder, kind: str, name: str, kwargs: dict[str, Any]) -> VitEncoder:
    """The network of another kind, with weights that are still to be overwritten."""
    architecture = encoder.facts.architecture | {"kind": kind, "name": name, "kwargs": kwargs}
    with torch.random.fork_rng(devices=[]):
        made = build_encoder(architecture, encoder.facts.origin)
    return made.train(encoder.training)
