"""A study of your own: two methods, two seeds each; a table of what each is worth and costs.

Run it:  python examples/own_study.py [FOLDER_OF_IMAGES]

Without a folder it draws some images. Each run is an ordinary one, so a stopped study goes
on where it was. An arm may be a chain of several, such as a pre-training and a fine-tuning.
"""

import sys
import tempfile
from functools import partial
from pathlib import Path

import limbeck
from limbeck.data.options import DataOptions
from limbeck.engine.options import OptimOptions, TrainOptions
from limbeck.models.options import StudentOptions, TeacherOptions
from limbeck.recipes.run.lineage import scores_of
from limbeck.recipes.study.engine import Arm, Engine, Run
from limbeck.recipes.study.results import RUNS, Column, Result, percent, row_of, table_of

METHODS = {"relation": "relation", "mine": "own_method:TokenMatch"}  # the example beside this one


def runs(images: Path, out: Path, name: str, seed: int) -> list[Run]:
    config = limbeck.DistillConfig(
        out=out / f"{name}_{seed}",
        method=METHODS[name],
        seed=seed,
        student=StudentOptions(
            name="vit_tiny", img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=2
        ),
        teacher=TeacherOptions(source="own_teacher:build"),
        data=DataOptions(root=str(images), num_workers=0, holdout_ratio=0.25),
        optim=OptimOptions(base_lr=1e-2),
        train=TrainOptions(epochs=2, global_batch_size=16),
    )
    measure = partial(lambda folder: Result(scores_of(folder)), config.out)
    return [Run(partial(limbeck.distill, config), config.out, {"seconds": "seconds"}, measure)]


def main(images: Path, out: Path) -> None:
    engine = Engine()
    engine.finish_all([Arm(name, partial(runs, images, out, name)) for name in METHODS], 2)
    rows = {name: row_of(seeds.values()) for name, seeds in engine.results.items()}
    worth = [Column(f"{probe}_top1", f"{probe} %", percent) for probe in ("knn", "linear")]
    seconds = Column("seconds", "s", lambda values: f"{sum(values):.1f}")
    print(table_of("method", rows, [*worth, seconds, RUNS]))


if __name__ == "__main__":
    from own_teacher import draw_images

    with tempfile.TemporaryDirectory() as folder:
        given = Path(sys.argv[1]) if len(sys.argv) > 1 else draw_images(Path(folder) / "images")
        main(given, Path(folder) / "runs")
