"""Masked pre-training of a tiny ViT, with attention scores distilled into it; few labels and many.

    limbeck distill --preset experiments/cifar10_tinymim/teacher.toml \\
        --data CIFAR/cifar10_train.parquet --data.eval-root CIFAR/cifar10_test.parquet \\
        --out runs/cifar10/teacher
    python -m experiments.cifar10_mae_lite.run --data CIFAR --teacher runs/cifar10/teacher \\
        --out runs/cifar10/mae_lite
"""

from experiments.cifar10 import Arm, Budget, run
from limbeck.methods.options import AttentionMapOptions, ReconstructionOptions
from limbeck.models.options import StudentOptions

# Heads of 16 channels, as the study's ViT-Tiny.
STUDENT = StudentOptions(
    name="vit_tiny_patch16_224", img_size=32, patch_size=4, embed_dim=96, depth=6, num_heads=6
)
# The fourth of six, as the eighth of twelve.
BEFORE_BLOCK = ReconstructionOptions(weight=1.0, before_block=4)

ARMS = {
    "scratch": Arm(None),
    "MAE": Arm("masked-pixel"),
    "D-MAE": Arm("attention-map", AttentionMapOptions()),
    "D2-MAE": Arm(
        "attention-map", AttentionMapOptions(decoupled=True, reconstruction=BEFORE_BLOCK)
    ),
}

if __name__ == "__main__":
    run(
        __doc__,
        ARMS,
        Budget(pretrain=128_000, finetune=32_000),
        seeds=3,
        student=STUDENT,
        fractions=(1.0, 0.1, 0.01),
    )
