"""A distillation method of your own, in one file: match the teacher's final patch tokens.

Run it:  python examples/own_method.py [FOLDER_OF_IMAGES]

Without a folder it draws some images. The same class works on the command line:
limbeck distill --method own_method:TokenMatch --method-options beta=1.0 ...
"""

import sys
import tempfile
from pathlib import Path

import torch
from torch.nn import functional as F

import limbeck
from limbeck.config import options
from limbeck.data.options import DataOptions
from limbeck.engine.options import OptimOptions, TrainOptions
from limbeck.methods.options import MethodOptions
from limbeck.models.options import StudentOptions, TeacherOptions


@options
class TokenMatchOptions(MethodOptions):
    """Its options: typed, checked, saved with the run."""

    beta: float = 2.0
    """Where smooth-L1 turns from squares to lines."""


class TokenMatch(limbeck.Method):
    """Smooth-L1 between projected student tokens and layer-normalised teacher tokens."""

    Options = TokenMatchOptions
    student_taps = (limbeck.Tap("output"),)
    teacher_taps = (limbeck.Tap("output"),)

    def __init__(self, options, student, teacher):
        super().__init__()
        self.beta = options.beta
        self.proj = torch.nn.Linear(student.embed_dim, teacher.embed_dim)

    def forward(self, student, teacher, batch):
        prediction = self.proj(student.tokens[:, student.num_prefix_tokens :])
        target = teacher.tokens[:, teacher.num_prefix_tokens :].float()
        target = F.layer_norm(target, target.shape[-1:])
        loss = F.smooth_l1_loss(prediction.float(), target, beta=self.beta)
        return limbeck.Losses(total=loss, parts={"token": loss.detach()})


def main(images: Path, out: Path) -> Path:
    config = limbeck.DistillConfig(
        out=out,
        method="own_method:TokenMatch",
        method_options=("beta=1.0",),
        student=StudentOptions(
            name="vit_tiny", img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=2
        ),
        teacher=TeacherOptions(source="own_teacher:build"),  # the example beside this one
        data=DataOptions(root=str(images), num_workers=0),
        optim=OptimOptions(base_lr=1e-2),
        train=TrainOptions(epochs=4, global_batch_size=16),
    )
    run = limbeck.distill(config)
    student = limbeck.load(run)
    print(student(torch.rand(1, 3, 32, 32)).tokens.shape)
    return run


if __name__ == "__main__":
    from own_teacher import draw_images

    with tempfile.TemporaryDirectory() as folder:
        given = Path(sys.argv[1]) if len(sys.argv) > 1 else draw_images(Path(folder) / "images")
        main(given, Path(folder) / "run")
