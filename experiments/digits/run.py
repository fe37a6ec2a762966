"""Beside the demo: the fairer and the harder comparisons on the same digits.

    python experiments/digits/run.py [--out runs/digits] [--seeds 3]

The demo compares at equal steps. Here the same student also gets three times the steps alone,
starts untrained, and is distilled with the other two treatments of the tail that relation
distillation never trains.
"""

import argparse
import logging
from dataclasses import replace
from pathlib import Path

import limbeck
from limbeck.evaluation.report import table
from limbeck.recipes.run.options import EmbedOptions
from limbeck.recipes.study.demo import (
    DemoConfig,
    store_config,
    student_configs,
    teacher_config,
    write_digits,
)

LONGER = 3  # more than the time of the distilled student and of the answers that it learnt from


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/digits"))
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    logging.getLogger("limbeck").setLevel(logging.WARNING)
    config = DemoConfig(out=arguments.out, seeds=arguments.seeds)
    digits = write_digits(config.out / "digits")
    teacher = str(limbeck.distill(teacher_config(config, digits)))
    limbeck.store_targets(store_config(config, digits, teacher))
    arms: dict[str, list[str]] = {
        "distilled (tail kept)": [],
        "distilled, tail drawn afresh": [],
        "distilled, tail zeroed": [],
        "alone, as many steps": [],
        "alone, three times the steps": [],
    }
    for seed in range(config.seeds):
        distilled, alone = student_configs(config, digits, seed)
        long = replace(alone.train, epochs=LONGER * alone.train.epochs)
        runs = [
            distilled,
            replace(distilled, untrained_tail="reinit", out=config.out / f"reinit_{seed}"),
            replace(distilled, untrained_tail="zero", out=config.out / f"zero_{seed}"),
            alone,
            replace(alone, train=long, out=config.out / f"long_{seed}"),
        ]
        for arm, run in zip(arms, runs, strict=True):
            arms[arm].append(str(limbeck.distill(run)))
    rows = []
    for arm, students in arms.items():
        found = limbeck.evaluate(
            limbeck.EvaluateConfig(
                student=tuple(students),
                data=teacher_config(config, digits).data,
                embed=EmbedOptions(crop_ratio=1.0),
                measure_speed=False,
            )
        )
        rows.append(cells(arm, found.rows[0].scores))
        untrained = found.rows[1].scores
    rows.append(cells("untrained", untrained))
    print(table(rows))


def cells(arm: str, scores: dict) -> dict[str, str]:
    names = ("linear_top1", "knn_top1", "few_5_top1", "few_20_top1")
    text = {
        name: f"{100 * scores[name].mean:.1f} ± {100 * (scores[name].spread or 0):.1f}"
        for name in names
    }
    return {"student": arm} | text


if __name__ == "__main__":
    main()
