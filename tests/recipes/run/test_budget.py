"""A student by budget: what is chosen, told and kept."""

import json
import logging
from dataclasses import dataclass, replace

import pytest

from limbeck.config import to_plain
from limbeck.engine.distributed import ranks_session
from limbeck.errors import UserError
from limbeck.models.options import StudentOptions
from limbeck.recipes.run import budget
from limbeck.recipes.run.budget import Candidate, choose_student, search
from limbeck.recipes.run.options import DistillConfig
from limbeck.recipes.run.precision import settled_plain

PLAIN = [f"vit_tiny:embed_dim=24:num_heads=2:depth={depth}" for depth in (1, 2, 3, 4)]
STAGES = "tiny_vit_5m:embed_dims=32-32-32-32:depths=1-1-1-1"
ASKED = StudentOptions(name="<=5ms", img_size=64)


@pytest.fixture
def few(monkeypatch):
    """Two small families; a plain ViT of depth d takes 2 d ms, a TinyViT 20 ms."""
    monkeypatch.setattr(budget, "FAMILIES", {"plain ViT": tuple(PLAIN), "TinyViT": (STAGES,)})
    told = []

    def measure(candidates, runtime, latency):
        told.append([each.shape.text for each in candidates])
        return [2.0 * each.shape.depth if each.shape.depth else 20.0 for each in candidates]

    monkeypatch.setattr(budget, "measure", measure)
    return told


def chosen(tmp_path, **values):
    config = DistillConfig(
        **{"out": tmp_path / "run", "method": "simmim", "student": ASKED} | values
    )
    with ranks_session("cpu") as ranks:
        return choose_student(config, ranks, lambda own: [own])


def test_the_most_capable_within_the_budget_is_chosen_and_told(few, tmp_path, caplog):
    caplog.set_level(logging.INFO, "limbeck")
    found = chosen(tmp_path).student
    assert (found.name, found.depth, found.img_size, found.budget) == ("vit_tiny", 2, 64, "<=5ms")
    assert few[0] == ["vit_tiny:img_size=64:embed_dim=24:depth=3:num_heads=2",
                      "tiny_vit_5m:img_size=64:embed_dims=32-32-32-32:depths=1-1-1-1"]  # fmt: skip
    assert "the most capable shape that is <=5ms: 0.0334 M parameters" in caplog.text
    assert "4 ms (" in caplog.text and "batch 1, 1 thread" in caplog.text
    rows = [
        line for line in caplog.text.splitlines() if line.startswith("| vit") or "STAGES" in line
    ]
    assert rows[0].endswith("chosen   |") and rows[1].endswith("too slow |")
    assert "depth=3" in rows[1] and "| tiny_vit_5m" in caplog.text


def test_counts_are_exact_and_nothing_is_measured_for_them(few, tmp_path):
    student = replace(ASKED, name="<=0.03M")
    assert chosen(tmp_path, student=student).student.depth == 1
    assert few == []
    student = replace(ASKED, name="<=3MMAC,<=100ms")
    assert chosen(tmp_path, student=student).student.depth == 4


def test_only_what_the_method_can_train(few, tmp_path, caplog):
    caplog.set_level(logging.INFO, "limbeck")
    student = replace(ASKED, name="<=10M")
    assert chosen(tmp_path, student=student).student.name == "tiny_vit_5m"
    assert chosen(tmp_path, student=student, method="masked-pixel").student.name == "vit_tiny"
    assert "can't be trained here: tiny_vit_5m_224 can't leave patches out" in caplog.text


def test_what_nothing_meets_names_the_smallest(few, tmp_path):
    for name, least in (("<=1K", r"depth=1:.*, has 0.0262 M param"), ("<=1ms", "depth=1.* 2 ms")):
        with pytest.raises(UserError, match=f"No student is {name}: the smallest.*{least}"):
            chosen(tmp_path, student=replace(ASKED, name=name))
    student = replace(ASKED, name="<=1G", patch_size=7)
    with pytest.raises(UserError, match="can be trained here.*patch_size"):
        chosen(tmp_path, student=student)
    with pytest.raises(UserError, match="<=30K can be trained here. mask_ratio 0.6 keeps 0 of 1"):
        chosen(tmp_path, student=StudentOptions(name="<=30K", img_size=32))


def test_a_run_keeps_its_student_on_any_machine(few, tmp_path, monkeypatch):
    first = chosen(tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text(json.dumps(settled_plain(first)))
    few.clear()
    monkeypatch.setattr(budget, "FAMILIES", {})  # elsewhere others would be chosen
    assert chosen(tmp_path) == first and few == []
    with pytest.raises(UserError, match="No student"):  # another budget is another run
        chosen(tmp_path, student=replace(ASKED, name="<=6ms"))
    with pytest.raises(UserError, match="No student"):
        chosen(tmp_path, seed=5)
    for stated in ({"img_size": 48}, {"img_size": None}, {"patch_size": 8}):
        with pytest.raises(UserError, match="No student"):
            chosen(tmp_path, student=replace(ASKED, **stated))


def test_a_named_student_is_left_alone_and_has_no_record(tmp_path):
    config = chosen(tmp_path, student=StudentOptions(name="vit_tiny"))
    assert config.student == StudentOptions(name="vit_tiny")
    assert to_plain(config)["student"]["budget"] is None
    assert "budget" not in settled_plain(config)["student"]


def test_families_are_halved_together():
    @dataclass
    class Shape:
        text: str

    def family(name, powers):
        return [Candidate(name, Shape(f"{name}{p}"), {"macs": p, "params": 0}) for p in powers]

    one, other = family("a", range(1, 17)), family("b", (2.5, 7.5, 9.5, 30))
    judged = []

    def judge(several):
        judged.append([each.shape.text for each in several])
        for each in several:
            each.why = "too slow" if each.costs["macs"] > 9.7 else ""

    best = search([*one, *other], lambda each: each.shape.text != "a9", judge, bisects=True)
    assert best.shape.text == "b9.5"
    assert judged == [["a10", "b9.5"]] or sum(map(len, judged)) <= 6


def test_latencies_are_of_real_networks(monkeypatch):
    shapes = [StudentOptions(name=name, img_size=32) for name in PLAIN[:2]]
    candidates = [Candidate("plain ViT", shape, {}) for shape in shapes]
    latency = budget.LatencyOptions(runtime="torch", num_turns=1)
    taken = budget.measure(candidates, "torch", latency)
    assert len(taken) == 2 and min(taken) > 0
