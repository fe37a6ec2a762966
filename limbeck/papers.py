"""Names by which papers are known, and what they are called here.

One looks for TinyMIM or DeiT, as a method, a preset or a verb; here a method has its mechanism's
name, because several papers share it.
"""

import re

PAPERS = {
    "tinymim": "TinyMIM is limbeck distill --method relation (or feature, cls-token), in presets "
    "such as tinymim_vit_tiny.",
    "mae": "MAE is limbeck distill --method masked-pixel, in presets such as mae_vit_tiny.",
    "maelite": "MAE-Lite is limbeck distill --method masked-pixel, and with a teacher (D-MAE) "
    "attention-map, in presets such as d_mae_vit_tiny.",
    "dmae": "D-MAE is limbeck distill --method attention-map, in presets such as d_mae_vit_tiny.",
    "d2mae": "D2-MAE is limbeck distill --preset d2_mae_vit_tiny, which is --method attention-map.",
    "g2sd": "G2SD is limbeck two-stage; its first stage alone is limbeck distill --method "
    "decoder-feature, its second limbeck finetune --preset g2sd_specific.",
    "tinyvit": "TinyViT's distillation is limbeck store-targets, and then limbeck distill --method "
    "sparse-logit --targets STORE, both with --preset tiny_vit_distill.",
    "deit": "DeiT's distillation is limbeck finetune --teacher CLASSIFIER --head distilled.",
    "moco": "MoCo v3 is limbeck distill --method moco-v3.",
    "beit": "BEiT is no method here, but its weights can be a --teacher.",
    "dinov2": "DINOv2 is no method here (dino is the first one's), but its weights can be a "
    "--teacher.",
}


def of_paper(word: str) -> str:
    """What a paper's name means here, as a sentence to append (with a leading space), or ''."""
    known = PAPERS.get(re.sub(r"[\W_]", "", word).lower())
    return f" {known}" if known else ""
