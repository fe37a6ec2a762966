"""Every arm of every method, by name: what the tests of all methods run over."""

from limbeck.data.options import PairMixOptions
from limbeck.methods.attention_map import AttentionMap
from limbeck.methods.cls_patch import ClsPatch
from limbeck.methods.cls_token import ClsToken
from limbeck.methods.decoder_feature import DecoderFeature
from limbeck.methods.dino import Dino
from limbeck.methods.feature import Feature
from limbeck.methods.masked_pixel import MaskedPixel
from limbeck.methods.moco_v3 import MocoV3
from limbeck.methods.options import ReconstructionOptions, RegressionOptions
from limbeck.methods.output_similarity import OutputSimilarity
from limbeck.methods.relation import Relation
from limbeck.methods.simmim import SimMim
from limbeck.methods.sparse_logit import SparseLogit

PIXELS = ReconstructionOptions(weight=0.5)
NONE = ReconstructionOptions(weight=0.0)
L1 = RegressionOptions(weight=0.5, mask_patch_size=4)
EARLY = ReconstructionOptions(weight=1.0, before_block=1)
EARLY_L1 = RegressionOptions(weight=1.0, mask_patch_size=4, before_block=1, decoder_depth=1)
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
    "relation-mask-token": (
        Relation,
        {"mask_ratio": 0.5, "masking": "mask-token", "regression": L1},
    ),
    "moco-v3": (MocoV3, {"hidden_dim": 16, "out_dim": 8}),
    "dino": (Dino, {"hidden_dim": 16, "bottleneck_dim": 8, "out_dim": 32}),
    "cls-token": (ClsToken, {}),
    "cls-token-pixels": (ClsToken, {"mask_ratio": 0.5, "reconstruction": PIXELS}),
    "cls-patch": (ClsPatch, {}),
    "cls-patch-masked-pixels": (ClsPatch, {"mask_ratio": 0.5, "reconstruction": PIXELS}),
    "output-similarity": (OutputSimilarity, {}),
    "output-similarity-gram": (OutputSimilarity, {"kind": "gram", "global_weight": 0.0}),
    "attention-map": (AttentionMap, {"mask_ratio": 0.5}),
    "attention-map-pairs": (AttentionMap, {"mask_ratio": 0.5, "block_pairs": ((0, 1), (1, 1))}),
    "attention-map-identity": (AttentionMap, {"mask_ratio": 0.5, "mixer": "identity"}),
    "attention-map-maps": (AttentionMap, {"mask_ratio": 0.5, "target": "maps"}),
    "attention-map-tokens": (
        AttentionMap,
        {"mask_ratio": 0.5, "target": "tokens", "block_pairs": ((0, 0), (-1, 2))},
    ),
    "attention-map-sees-all": (
        AttentionMap,
        {"mask_ratio": 0.5, "teacher_sees": "all", "reconstruction": NONE},
    ),
    "attention-map-unmasked": (AttentionMap, {"mask_ratio": 0.0, "reconstruction": NONE}),
    "attention-map-decoupled": (
        AttentionMap,
        {"mask_ratio": 0.5, "decoupled": True, "reconstruction": EARLY},
    ),
    "attention-map-mask-token": (
        AttentionMap,
        {"mask_ratio": 0.5, "masking": "mask-token", "decoupled": True, "regression": EARLY_L1},
    ),
    "decoder-feature": (DecoderFeature, {}),
    **{
        f"decoder-feature-{positions}": (
            DecoderFeature,
            {"positions": positions, "mask_ratio": 0.5, "target_block": -1},
        )
        for positions in ("masked", "visible", "patches")
    },
    **{
        f"decoder-feature-{loss}": (DecoderFeature, {"loss": loss, "encoder_weight": 0.5})
        for loss in ("smooth-l1", "mse", "cosine")
    },
    "sparse-logit": (SparseLogit, {}),
    "sparse-logit-top-1": (SparseLogit, {"top_k": 1, "temperature": 2.0}),
    "sparse-logit-mixed": (SparseLogit, {"mix": PairMixOptions(mixup_alpha=0.8, cutmix_alpha=1.0)}),
    "simmim": (SimMim, {"mask_ratio": 0.5, "mask_patch_size": 4}),
    "simmim-block": (SimMim, {"mask_ratio": 0.5, "mask_patch_size": 4, "decoder_depth": 1}),
}
