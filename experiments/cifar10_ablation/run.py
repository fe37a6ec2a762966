"""The ablations of TinyMIM (its Tables 5 to 7, 10, 12 and 13), small, beside the paper's numbers.

    python -m experiments.cifar10_ablation.run --data CIFAR --teacher runs/cifar10/teacher \\
        --out runs/cifar10/ablation

The teacher is that of experiments/cifar10_tinymim. Of its eight blocks, 4, 5, 6, 7 and 8 stand for
the paper's 12, 15, 18, 21 and 24 of 24; the default is the sixth, as the paper's is the eighteenth.
"""

from experiments.cifar10 import Arm, Budget, run
from limbeck.methods.options import (
    ClsTokenOptions,
    FeatureOptions,
    ReconstructionOptions,
    RelationOptions,
)

BLOCK = 5  # counted from 0
MASKED = {"mask_ratio": 0.75}
PIXELS = MASKED | {"reconstruction": ReconstructionOptions(weight=1.0)}


def cls_token(**options):
    return Arm("cls-token", ClsTokenOptions(teacher_block=BLOCK, **options))


def feature(target, block=BLOCK):
    return Arm("feature", FeatureOptions(target=target, teacher_block=block))


def relation(*relations, teacher_drop_path=0.0, **options):
    values = {"relations": relations or ("qk", "vv"), "teacher_block": BLOCK} | options
    return Arm("relation", RelationOptions(**values), {"drop_path_rate": teacher_drop_path})


# (table and arm, the paper's top-1 on ImageNet-1K, what is run here)
ARMS = {
    "5: MAE": (83.6, Arm("masked-pixel")),
    "5: CLS": (80.6, cls_token()),
    "5: CLS + reconstruction": (82.1, cls_token(**PIXELS)),
    "6: output feature": (83.7, feature("tokens", block=-1)),
    "6: FFN, before the add": (84.2, feature("mlp_output")),
    "6: FFN, after the add": (81.8, feature("tokens")),
    "6: attention, before the add": (84.1, feature("attention_output")),
    "6: attention, after the add": (81.3, feature("attention_tokens")),
    "6: Q, K, V": (84.3, feature("qkv")),
    "7: QQ + KK + VV, no softmax": (84.4, relation("qq", "kk", "vv", softmax=False)),
    "7: QQ + KK + VV": (84.5, relation("qq", "kk", "vv")),
    "7: QK + VV, no softmax": (84.4, relation(softmax=False)),
    "7: QK + VV (the default)": (84.6, relation()),
    "10: block 4 of 8 (12 of 24)": (83.6, relation(teacher_block=3)),
    "10: block 5 (15)": (84.1, relation(teacher_block=4)),
    "10: block 7 (21)": (84.8, relation(teacher_block=6)),
    "10: block 8 (24)": (84.4, relation(teacher_block=7)),
    "12: masked": (83.9, relation(**MASKED)),
    "12: masked + reconstruction": (84.0, relation(**PIXELS)),
    "13: drop path teacher 0, student 0": (84.3, relation(drop_path_rate=0.0)),
    "13: 0, 0.2": (84.3, relation(drop_path_rate=0.2)),
    "13: 0, 0.3": (84.1, relation(drop_path_rate=0.3)),
    "13: 0.1, 0.1": (83.9, relation(teacher_drop_path=0.1)),
}

if __name__ == "__main__":
    run(
        __doc__,
        {name: arm for name, (_, arm) in ARMS.items()},
        Budget(pretrain=20_000, finetune=20_000),
        seeds=2,
        notes={name: {"paper top-1 %": paper} for name, (paper, _) in ARMS.items()},
    )
