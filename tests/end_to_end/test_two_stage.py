"""Two stages on the command line: one command, and one that is killed in each stage."""

import json
import signal

import pytest

from limbeck.cli import main
from tests.end_to_end.commands import STUDENT, data_words, process
from tests.recipes.runs import snapshot, weights_of
from tests.recipes.scenes import draw_scenes

OWN = """
import os
from pathlib import Path

from limbeck.methods.logit import Logit
from limbeck.methods.relation import Relation

CALLS = []


def may_stop(stage):
    CALLS.append(stage)
    # In the third step; the rehearsal comes before it, and in stage one the look for gradients.
    is_third = CALLS.count(stage) == {"stage_one": 6, "both": 4}[stage]
    if is_third and Path("armed").exists() and Path("armed").read_text() == stage:
        os.kill(os.getpid(), 9)


class First(Relation):
    def forward(self, student, teacher, batch):
        may_stop("stage_one")
        return super().forward(student, teacher, batch)


class Second(Logit):
    def forward(self, student, teacher, batch):
        may_stop("both")
        return super().forward(student, teacher, batch)
"""


def section(name, epochs):
    """Two steps per epoch on the CPU, for the section of that name."""
    words = {
        "train.epochs": epochs, "train.global-batch-size": 16, "train.precision": "fp32",
        "train.device": "cpu", "train.save-every": 2, "train.probe-every": 100,
        "optim.base-lr": 1e-2,
    }  # fmt: skip
    return [text for key, value in words.items() for text in (f"--{name}{key}", str(value))]


def two_stage_words(images, teacher, out):
    return [
        *("two-stage", *data_words(images), "--out", str(out), *STUDENT, "--teacher", str(teacher)),
        *("--no-measure-speed", *section("", 2), *section("specific.", 2)),
    ]


def test_from_images_to_a_compared_student(images, teacher, tmp_path, capsys):
    out = tmp_path / "out"
    words = two_stage_words(images, teacher, out)
    words += section("tune-teacher.", 1) + ["--specific.head", "distilled"]
    words += ["--method", "relation", "--relation.drop-path-rate", "0"]
    main(words)
    shown = capsys.readouterr()
    assert "| teacher " in shown.out and "| both " in shown.out
    assert "What each stage gives is not known" in shown.out
    assert f"The student is in {out}/seed_0/both, of the arm 'both'." in shown.out
    assert shown.err.index("is built once, likewise") < shown.err.index("distill  step ")
    both = weights_of(out / "seed_0" / "both")

    main([*words, "--arms", "both", "generic"])
    shown = capsys.readouterr()
    assert "Verdict: two stages " in shown.out
    assert weights_of(out / "seed_0" / "both") == both
    assert json.loads((out / "two_stage.json").read_text())["arms"].keys() == {"both", "generic"}

    with pytest.raises(SystemExit):
        main([*words, "--arms", "generc"])
    assert "There is no arm 'generc'. Did you mean 'generic'?" in capsys.readouterr().err


def test_from_scenes_to_a_segmenter(tmp_path, capsys):
    scenes, out = draw_scenes(tmp_path / "scenes"), tmp_path / "out"
    words = ["two-stage", "--task", "segment", *data_words(scenes), "--out", str(out), *STUDENT]
    words += ["--arms", "fine-tune", "--no-measure-speed", *section("specific.", 1)]
    main(words)
    shown = capsys.readouterr()
    assert "| fine-tune " in shown.out and "mIoU %" in shown.out and "| box " in shown.out
    assert json.loads((out / "two_stage.json").read_text())["arms"]["fine-tune"]["0"]["scores"]
    main(["evaluate", "--student", str(out / "seed_0/fine-tune"), *data_words(scenes)])
    assert "mIoU %" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["stage_one", "both"])
def test_killed_in_a_stage_it_ends_bit_by_bit_the_same(
    images, teacher, classifier, tmp_path, monkeypatch, capsys, stage
):
    (tmp_path / "own_stages.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    own = ["--task-teacher", str(classifier), "--method", "own_stages:First"]
    own += ["--method-options", "drop_path_rate=0.3", "--specific.head", "distilled"]
    own += ["--specific.method", "own_stages:Second"]
    words = [*two_stage_words(images, teacher, tmp_path / "stopped"), *own]
    (tmp_path / "armed").write_text(stage)
    stopped = process(words, cwd=tmp_path)
    assert stopped.returncode == -signal.SIGKILL, stopped.stderr
    run = tmp_path / "stopped" / "seed_0"
    assert (run / stage / "checkpoint.pt").exists()
    assert not (run / stage / "finished.json").exists()
    first = snapshot(run / "stage_one") if stage == "both" else {}

    (tmp_path / "armed").unlink()
    main([*two_stage_words(images, teacher, tmp_path / "whole"), *own])
    capsys.readouterr()
    main(words)
    assert "continues at step 2 of 4" in capsys.readouterr().err
    assert {name: snapshot(run / "stage_one")[name] for name in first} == first
    for name in ("stage_one", "both"):
        assert weights_of(run / name) == weights_of(tmp_path / "whole" / "seed_0" / name)
