"""A chain on the command line: killed in its second stage and continued, and on two processes."""

import signal

import pytest

from limbeck.cli import main
from tests.end_to_end.commands import process, train_words
from tests.recipes.runs import assert_same_student, metrics_of, snapshot, weights_of

STAGES = (
    "vit_small:embed_dim=24:depth=2:num_heads=3,vit_tiny:embed_dim=16:depth=2:num_heads=2"
)  # fmt: skip
FIRST, SECOND = "1_vit_small", "2_vit_tiny"

OWN = """
import os
from pathlib import Path

from limbeck.methods.options import RelationOptions
from limbeck.methods.relation import Relation

CALLS = []


class Stopped(Relation):
    Options = RelationOptions

    def forward(self, student, teacher, batch):
        CALLS.append(batch.keys)
        # Ten calls of the first stage, whose first two look for gradients, and eight of the second.
        if len(CALLS) == 18 and Path("armed").exists():
            os.kill(os.getpid(), int(Path("armed").read_text()))
        return super().forward(student, teacher, batch)
"""


@pytest.fixture
def words(images, teacher, tmp_path, monkeypatch):
    """A command line of two stages of eight steps into a folder of that name."""
    (tmp_path / "own_chain_method.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)

    def build(out):
        return [
            *("distill", *train_words(images, tmp_path / out), "--teacher", str(teacher)),
            *("--chain", STAGES, "--student.img-size", "32", "--student.patch-size", "8"),
        ]

    return build


OWN_WORDS = [
    *("--method", "own_chain_method:Stopped", "--train.save-every", "4"),
    *("--method-options", "drop_path_rate=0.3", "color_jitter=[0.4, 0.4, 0.4]"),
]


def test_from_one_command_to_the_last_student(words, tmp_path, capsys):
    main(words("run"))
    shown = capsys.readouterr()
    assert "Stage 1 of 2: vit_small learns from " in shown.err
    assert f"Stage 2 of 2: vit_tiny learns from {tmp_path / 'run' / FIRST}." in shown.err
    assert f"Stage {SECOND} is in {tmp_path / 'run' / SECOND}." in shown.out
    main(["inspect", str(tmp_path / "run")])
    said = capsys.readouterr().out
    assert "finished student" in said
    assert "2 blocks, width 16" in said
    before = snapshot(tmp_path / "run")
    main(words("run"))
    assert "is finished already; nothing to do." in capsys.readouterr().err
    assert snapshot(tmp_path / "run") == before


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "saved"), [(signal.SIGKILL, 4), (signal.SIGTERM, 6), (signal.SIGINT, 6)]
)
def test_killed_in_its_second_stage_a_chain_ends_bit_by_bit_the_same(
    words, tmp_path, capsys, number, saved
):
    run, whole = tmp_path / "stopped", tmp_path / "whole"
    (tmp_path / "armed").write_text(str(int(number)))
    stopped = process([*words("stopped"), *OWN_WORDS], cwd=tmp_path)
    assert "Traceback" not in stopped.stderr
    if number == signal.SIGKILL:
        assert stopped.returncode == -signal.SIGKILL
    else:
        assert stopped.returncode == 128 + number
        name = "Ctrl-C" if number == signal.SIGINT else "SIGTERM"
        said = f"limbeck: Stopped by {name} after step 6, which is saved in {run / SECOND}; "
        assert said in stopped.stderr
    assert (run / FIRST / "student.safetensors").exists()
    assert (run / SECOND / "checkpoint.pt").exists()
    assert not (run / SECOND / "student.safetensors").exists()
    assert not (run / "student.safetensors").exists()
    first = snapshot(run / FIRST)

    (tmp_path / "armed").unlink()
    main([*words("whole"), *OWN_WORDS])
    capsys.readouterr()
    main([*words("stopped"), *OWN_WORDS])
    log = capsys.readouterr().err
    assert f"{run / FIRST} is finished already; nothing to do." in log
    assert f"continues at step {saved} of 8" in log
    assert snapshot(run / FIRST) == first
    for folder in (FIRST, SECOND, "."):
        assert weights_of(run / folder) == weights_of(whole / folder)
    of_run, of_whole = (
        [(record["step"], record["losses"]) for record in metrics_of(each / SECOND)[0]]
        for each in (run, whole)
    )
    assert of_run == of_whole
    assert len(of_run) == 8


@pytest.mark.slow
def test_two_processes_make_the_chain_that_one_makes(words, tmp_path):
    one = [*words("one"), "--relation.drop-path-rate", "0"]
    two = [*words("two"), "--relation.drop-path-rate", "0"]
    main(one)
    done = process(two, cwd=tmp_path, num_processes=2)
    assert done.returncode == 0, done.stderr
    for folder in (FIRST, SECOND, "."):
        assert_same_student(tmp_path / "two" / folder, tmp_path / "one" / folder)
    assert done.stdout.count(f"Stage {SECOND} is in") == 1
    assert done.stderr.count("Stage 2 of 2") == 1
