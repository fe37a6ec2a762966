"""``inspect``: what a file is, in words."""

import shutil

import pytest
import torch

import limbeck
from limbeck.errors import UserError
from limbeck.recipes.look.inspect import InspectConfig, inspect, report


def said_of(file):
    return report(inspect(InspectConfig(file=str(file))))


def test_a_finished_run(student):
    said = said_of(student)
    assert said.splitlines()[0] == str(student)
    assert "finished student" in said
    told = " ".join(said.split())
    assert "2 blocks, width 24, patches of 8 px, images of 32 x 32 px, 1 prefix tokens" in told
    assert "3, 4 (stated in its record or config)" in said
    assert "blocks.1.attn.qkv.weight" in said
    assert "72 x 24" in said
    assert "UNMATCHED" not in said


def test_what_a_run_keeps_beside_its_student(teacher):
    assert "note      decoder.safetensors beside it has 20 tensors" in said_of(teacher)


def test_a_weights_file(student, tmp_path):
    weights = limbeck.load(student).model.state_dict()
    torch.save({"model": weights, "epoch": 3}, tmp_path / "plain.pth")
    said = said_of(tmp_path / "plain.pth")
    assert "weights file" in said
    assert f"{len(weights)} with" in said
    assert "2 blocks, width 24" in said


def test_names_that_do_not_match_are_listed(student, tmp_path):
    weights = limbeck.load(student).model.state_dict()
    weights["blocks.0.attn.surprise"] = torch.zeros(3)
    torch.save(weights, tmp_path / "odd.pth")
    said = said_of(tmp_path / "odd.pth")
    assert "UNMATCHED 1 tensors; this file can't be loaded:" in said
    assert "unexpected: blocks.0.attn.surprise" in said.split("UNMATCHED")[1]


def test_a_checkpoint_of_a_run(student):
    said = said_of(student / "checkpoint.pt")
    assert "limbeck checkpoint" in said
    assert "its finished student is another file" in " ".join(said.split())


def test_unknown_tensors(tmp_path):
    torch.save({"a": torch.zeros(2, 3), "b": torch.tensor(1.0)}, tmp_path / "any.pth")
    said = said_of(tmp_path / "any.pth")
    assert "no layout that is known" in said
    assert "2 x 3" in said
    assert "scalar" in said


@pytest.mark.parametrize("name", ["", "no.pth"])
def test_nothing_to_inspect(tmp_path, name):
    with pytest.raises(UserError):
        inspect(InspectConfig(file=name and str(tmp_path / name)))


def test_what_is_unfinished_names_what_there_is(student, tmp_path):
    run = shutil.copytree(student, tmp_path / "run")
    for name in ("student.json", "student.safetensors", "finished.json"):
        (run / name).unlink()
    with pytest.raises(UserError, match="run is unfinished; inspect .*run/checkpoint.pt"):
        said_of(run)
    shutil.copytree(run, run / "2_vit_tiny")
    shutil.copytree(run, run / "1_vit_small", ignore=shutil.ignore_patterns("2_*"))
    with pytest.raises(UserError, match="chain in .* unfinished.* 1_vit_small, 2_vit_tiny"):
        said_of(run)
    (run / "2_vit_tiny" / "checkpoint.pt").unlink()
    with pytest.raises(UserError, match="2_vit_tiny is unfinished and has no checkpoint yet"):
        said_of(run / "2_vit_tiny")


def test_a_file_that_is_no_weights(tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(UserError, match="notes.txt is no weights file"):
        inspect(InspectConfig(file=str(tmp_path / "notes.txt")))


def test_the_summary_is_last_and_fits_the_terminal(teacher, student, tmp_path):
    weights = limbeck.load(student).model.state_dict()
    torch.save(weights | {"x" * 200: torch.zeros(3)}, tmp_path / "odd.pth")
    for path in (teacher, student, student / "checkpoint.pt", tmp_path / "odd.pth"):
        lines = said_of(path).splitlines()
        kinds = [index for index, line in enumerate(lines) if line.startswith("  kind ")]
        tensors = [
            index for index, line in enumerate(lines) if line.endswith(" 24") or "UNM" in line
        ]
        assert kinds[0] > max(tensors, default=0)
        assert all(len(line) <= 80 or " " not in line.strip() for line in lines[1:]), lines


def test_weights_that_are_not_finite_are_said_to_be(student, tmp_path):
    weights = limbeck.load(student).model.state_dict()
    weights["norm.bias"][0] = torch.inf
    torch.save(weights, tmp_path / "odd.pth")
    said = said_of(tmp_path / "odd.pth")
    assert "UNMATCHED 1 tensors; this file can't be loaded:" in said
    assert "'norm.bias' holds NaN or infinity (1 of 24 values)" in said
