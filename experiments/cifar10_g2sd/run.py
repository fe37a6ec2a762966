"""One stage or two (G2SD), small: a masked autoencoder and its classifier teach a tiny ViT.

    limbeck distill --preset experiments/cifar10_g2sd/teacher.toml \\
        --student.weights runs/cifar10/teacher --data CIFAR/cifar10_train.parquet \\
        --data.eval-root CIFAR/cifar10_test.parquet --out runs/cifar10/g2sd/teacher
    limbeck finetune --preset experiments/cifar10_g2sd/teacher_finetune.toml \\
        --student runs/cifar10/g2sd/teacher --data CIFAR/cifar10_train.parquet \\
        --data.eval-root CIFAR/cifar10_test.parquet --out runs/cifar10/g2sd/classifier
    python -m experiments.cifar10_g2sd.run --data CIFAR --teacher runs/cifar10/g2sd/teacher \\
        --classifier runs/cifar10/g2sd/classifier --out runs/cifar10/g2sd/arms
"""

from typing import Any

from experiments.cifar10 import Arm, Budget, run
from limbeck.data.options import CorruptionOptions
from limbeck.methods.options import DecoderFeatureOptions, RelationOptions

BUDGET = Budget(pretrain=96_000, finetune=48_000)
ALONE = 3  # 144,000 images in one stage, as the others in two
BLOCK = 5  # the sixth of eight, as TinyMIM's eighteenth of twenty-four

# Both read the class token, so that only what teaches differs.
PLAIN: dict[str, Any] = {"global_pool": "token"}
SPECIFIC: dict[str, Any] = {"head": "distilled-last", "global_pool": "token", "is_taught": True}

ARMS = {
    "fine-tune only": Arm(None, more=ALONE, **PLAIN),
    "specific only": Arm(None, more=ALONE, **SPECIFIC),
    # The labels that the others have after stage one.
    "fine-tune only, a third": Arm(None, **PLAIN),
    "generic only": Arm("decoder-feature", DecoderFeatureOptions(), **PLAIN),
    "generic + specific": Arm("decoder-feature", DecoderFeatureOptions(), **SPECIFIC),
    "TinyMIM + specific": Arm("relation", RelationOptions(teacher_block=BLOCK), **SPECIFIC),
}

if __name__ == "__main__":
    run(
        __doc__,
        ARMS,
        BUDGET,
        seeds=3,
        corruptions=CorruptionOptions(names=("all",), num_images=500),
    )
