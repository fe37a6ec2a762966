"""What to transfer (TinyMIM's Table 8), small: one student, its arms at equal steps.

    limbeck distill --preset experiments/cifar10_tinymim/teacher.toml \\
        --data CIFAR/cifar10_train.parquet --data.eval-root CIFAR/cifar10_test.parquet \\
        --out runs/cifar10/teacher
    python -m experiments.cifar10_tinymim.run --data CIFAR --teacher runs/cifar10/teacher \\
        --out runs/cifar10/tinymim
"""

from experiments.cifar10 import Arm, Budget, run
from limbeck.methods.options import ClsTokenOptions, FeatureOptions, RelationOptions

BLOCK = 5  # the sixth of eight, as the eighteenth of twenty-four

ARMS = {
    "scratch": Arm(None),
    "scratch, twice as long": Arm(None, more=2),
    "MAE": Arm("masked-pixel"),
    "CLS token": Arm("cls-token", ClsTokenOptions(teacher_block=BLOCK)),
    "feature (Q, K, V)": Arm("feature", FeatureOptions(teacher_block=BLOCK)),
    "relation (QK + VV)": Arm("relation", RelationOptions(teacher_block=BLOCK)),
}

if __name__ == "__main__":
    run(__doc__, ARMS, Budget(pretrain=32_000, finetune=32_000), seeds=3)
