"""Distillation methods.

A new one is its file here, its options in ``options.py`` (a class and a line), and a line in this
table, which is plain data so that a command line is checked before torch is imported.
"""

METHODS: dict[str, str] = {
    "relation": "limbeck.methods.relation:Relation",
    "feature": "limbeck.methods.feature:Feature",
    "cls-token": "limbeck.methods.cls_token:ClsToken",
    "attention-map": "limbeck.methods.attention_map:AttentionMap",
    "masked-pixel": "limbeck.methods.masked_pixel:MaskedPixel",
    "simmim": "limbeck.methods.simmim:SimMim",
    "moco-v3": "limbeck.methods.moco_v3:MocoV3",
    "dino": "limbeck.methods.dino:Dino",
}
"""Name on the command line -> "module:Class"."""

TASK_METHODS: dict[str, str] = {
    "logit": "limbeck.methods.logit:Logit",
}
"""Likewise the methods by which a teacher helps in fine-tuning, beside a task's own loss."""
