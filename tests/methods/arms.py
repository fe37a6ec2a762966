"""Every arm of every method, by name: what the tests of all methods run over."""

from limbeck.methods.cls_token import ClsToken
from limbeck.methods.dino import Dino
from limbeck.methods.feature import Feature
from limbeck.methods.masked_pixel import MaskedPixel
from limbeck.methods.moco_v3 import MocoV3
from limbeck.methods.options import ReconstructionOptions
from limbeck.methods.relation import Relation

PIXELS = ReconstructionOptions(weight=0.5)
TARGETS = (
    *("qkv", "queries", "keys", "values"),
    *("attention_output", "attention_tokens", "mlp_output", "tokens", "output"),
)

ARMS = {
    "masked-pixel": (MaskedPixel, {}),
    "relation": (Relation, {}),
    **{f"relation-{ab}": (Relation, {"relations": (ab,)}) for ab in ("qq", "kk", "vv", "qk")},
    "relation-qq-kk-vv": (Relation, {"relations": ("qq", "kk", "vv")}),
    "relation-no-softmax": (Relation, {"softmax": False}),
    "relation-temperature": (Relation, {"temperature": 2.0}),
    "relation-masked": (Relation, {"mask_ratio": 0.5}),
    "relation-masked-teacher-sees-all": (Relation, {"mask_ratio": 0.5, "teacher_sees": "all"}),
    "relation-masked-pixels": (Relation, {"mask_ratio": 0.5, "reconstruction": PIXELS}),
    "relation-first-blocks": (Relation, {"teacher_block": 0, "student_block": 0}),
    **{f"feature-{target}": (Feature, {"target": target}) for target in TARGETS},
    "feature-masked-pixels": (Feature, {"mask_ratio": 0.5, "reconstruction": PIXELS}),
    "feature-output-masked-pixels": (
        Feature,
        {"target": "output", "mask_ratio": 0.5, "reconstruction": PIXELS, "teacher_sees": "all"},
    ),
    "moco-v3": (MocoV3, {"hidden_dim": 16, "out_dim": 8}),
    "dino": (Dino, {"hidden_dim": 16, "bottleneck_dim": 8, "out_dim": 32}),
    "cls-token": (ClsToken, {}),
    "cls-token-pixels": (ClsToken, {"mask_ratio": 0.5, "reconstruction": PIXELS}),
}
