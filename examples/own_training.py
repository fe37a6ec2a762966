"""A training verb of your own: tell a number from an image; here, how big a disc is.

A plan says what is special about it; folder, log, loop, probes, resuming and saving are Limbeck's.
Try it: python examples/own_training.py; use it: limbeck own_training:regress --data DISCS."""

import tempfile
from functools import partial
from pathlib import Path

import torch
from torch.nn import functional as F

import limbeck
from limbeck.config import options
from limbeck.data.options import DataOptions, ViewOptions
from limbeck.engine.options import OptimOptions, TrainOptions
from limbeck.models.build import build_student
from limbeck.models.heads import with_classifier
from limbeck.models.options import StudentOptions
from limbeck.recipes.run.images import stream
from limbeck.recipes.run.options import CropEvalOptions, TrainingOptions
from limbeck.recipes.run.plan import Plan
from limbeck.recipes.run.probes import task_probe
from limbeck.recipes.run.train import session, train


@options
class RegressConfig(TrainingOptions):
    student: StudentOptions = StudentOptions()
    optim: OptimOptions = OptimOptions(base_lr=8e-2)
    train: TrainOptions = TrainOptions(epochs=20, global_batch_size=32)


class Regression(limbeck.Task):
    """Squared error of one output; the number of an image is the name of its folder."""

    taps = (limbeck.Tap("logits"),)

    def __init__(self, encoder, classes):
        super().__init__()
        self.encoder, self.numbers = encoder, torch.tensor([float(name) for name in classes])

    def loss(self, features, batch):
        numbers = self.numbers.to(batch.images.device)[batch.labels]
        loss = F.mse_loss(features.taps[self.taps[0]][:, 0].float(), numbers)
        return limbeck.Losses(total=loss, parts={"squared": loss.detach()})

    def predict(self, images):
        return self.encoder(images, None, self.taps).taps[self.taps[0]][:, 0]

    def score(self, predictions, labels):
        return {"mean_error": float((predictions - self.numbers[labels]).abs().mean())}


def regress(config: RegressConfig) -> Path:
    with session(config) as (config, images, ranks):
        start = build_student(config.student, seed=config.seed)
        student = with_classifier(start, 1, None, config.seed)
        task, shown = Regression(student, images.train.classes), CropEvalOptions(crop_ratio=1.0)
        views = ViewOptions(scale=(1.0, 1.0), ratio=(1.0, 1.0))  # a crop changes the size
        plan = Plan(
            verb="regress", config=config, images=images, student=student, module=task,
            stream=partial(stream, images, views, student.facts, ranks),
            score=partial(task_probe, task, images.holdout, shown, config.data, ranks.device),
            crop_ratio=shown.crop_ratio,
        )  # fmt: skip
        return train(plan, ranks)


if __name__ == "__main__":
    from own_teacher import draw_images  # the example beside this one

    shape = "vit_tiny:img_size=32:patch_size=8:embed_dim=32:depth=2:num_heads=2"
    with tempfile.TemporaryDirectory() as folder:
        config = RegressConfig(
            out=Path(folder) / "run",
            student=StudentOptions(name=shape),
            data=DataOptions(root=str(draw_images(Path(folder) / "discs")), holdout_ratio=0.2),
        )
        print("A finished student with", limbeck.load(regress(config)).facts.num_classes, "output.")
