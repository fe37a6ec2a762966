"""``limbeck cost``: rows of whatever can be named, and what can't be told beside them."""

import csv
import json

import pytest

from limbeck.errors import UserError
from limbeck.exports import onnx as to_onnx
from limbeck.exports import passes
from limbeck.models.build import build_student
from limbeck.models.finished import save_student
from limbeck.models.options import StudentOptions
from limbeck.recipes.look import cost as costing
from limbeck.recipes.look.cost import CostConfig, check, cost, report

SMALL = "vit_tiny:img_size=32:patch_size=8:embed_dim=24:depth=2:num_heads=2"
SHALLOW = SMALL.replace("depth=2", "depth=1")


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "runs" / "student"
    encoder = build_student(StudentOptions(name=SMALL), num_classes=3, seed=0)
    save_student(encoder, folder, {"scores": {"top1": 0.75, "top5": 1.0}})
    return folder


def quick(*models, **values):
    return CostConfig(models=models, **{"runtimes": ("torch",), "num_turns": 1} | values)


def test_names_shapes_and_runs_are_counted_and_measured(run, tmp_path):
    out = tmp_path / "costs.json"
    found = cost(quick(SMALL, SHALLOW, str(run), batch_size=2, out=out))
    rows = {row["model"]: row for row in found.rows}
    assert list(rows) == sorted(rows, key=lambda name: rows[name]["latency_ms"]["torch"])
    encoder = build_student(StudentOptions(name=SMALL), seed=0)
    assert rows[SMALL]["parameters"] == sum(p.numel() for p in encoder.parameters())
    assert rows[SMALL]["macs"] == sum(rows[SMALL]["macs_by_part"].values())
    assert rows[str(run)]["macs"] == rows[SMALL]["macs"] + 24 * 3
    assert rows[str(run)]["scores"] == {"top1": 0.75}
    assert rows[SMALL]["activation_mib"] == rows[SHALLOW]["activation_mib"] > 0
    for row in found.rows:
        assert row["latency_ms"]["torch"] > 0 and row["images_per_second"]["torch"] > 0
    said = json.loads(out.read_text())
    assert [row["name"] for row in said["rows"]] == [row["name"] for row in found.rows]
    assert "1 thread; ms for one image" in said["how"]
    assert {each.suffix for each in found.files} == {".json", ".png", ".svg"}
    text = report(found)
    for words in ("student", "M params", "GMACs", "MiB", "PyTorch", "% of MACs", "top1, %"):
        assert words in text
    assert "fp32" in text and "in batches of 2" in text


def test_what_can_t_be_read_is_told_and_the_others_go_on(tmp_path):
    found = cost(quick("vit_tyni", SMALL, str(tmp_path / "gone.pth"), measure=False, runtimes=(),
                       num_turns=15))  # fmt: skip
    assert [row["model"] for row in found.rows] == [SMALL] and found.rows[0]["latency_ms"] == {}
    assert "Did you mean 'vit_tiny'?" in found.problems[0] and "gone.pth" in found.problems[1]
    assert "PROBLEM: There is no" in report(found) and "Measured" not in report(found)
    with pytest.raises(UserError, match="no vision Transformer 'vit_tyni'"):
        cost(quick("vit_tyni", measure=True))


def test_a_missing_runtime_is_left_out_and_named(monkeypatch):
    monkeypatch.setattr(costing, "has_packages", lambda name: name == "torch")
    found = cost(quick(SMALL, runtimes=()))
    assert list(found.rows[0]["latency_ms"]) == ["torch"]
    assert [note for note in found.notes if "OpenVINO is not installed" in note]
    assert "pip install 'limbeck[export]'" in report(found)


def test_a_runtime_that_can_t_hold_it_is_told():
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    found = cost(quick(SMALL, runtimes=("torch", "onnx"), precision="bf16"))
    assert list(found.rows[0]["latency_ms"]) == ["torch"]
    assert any(
        f"{SMALL}: not in ONNX Runtime: ONNX can't hold bf16" in note for note in found.notes
    )


def test_what_a_converter_fails_on_is_told_comes_last_and_the_others_go_on(monkeypatch):
    def write(graph, file, precision):
        if graph.facts.depth == 1:
            try:
                raise KeyError("aten.odd\nand a long story")
            except KeyError as error:
                raise RuntimeError("Failed, see below") from error

    monkeypatch.setattr(to_onnx, "write", write)
    monkeypatch.setattr(to_onnx, "load", lambda *_: lambda images: {})
    for module in (costing, passes):
        monkeypatch.setattr(module, "has_packages", lambda name: True)
    monkeypatch.setattr(passes, "check_packages", lambda name: None)
    found = cost(quick(SHALLOW, SMALL, runtimes=("onnx",)))
    assert [row["model"] for row in found.rows] == [SMALL, SHALLOW]
    assert found.rows[1]["latency_ms"] == {} and SHALLOW.split(":")[0] in report(found)
    (note,) = (each for each in found.notes if "KeyError" in each)
    assert note.startswith(f"{SHALLOW}: not in ONNX Runtime: ONNX Runtime can't hold this network")
    assert "aten.odd" in note and "\n" not in note


def test_another_size_and_a_csv(tmp_path, run):
    out = tmp_path / "costs.csv"
    config = CostConfig(models=(SHALLOW.replace("img_size=32:", ""), str(run)), img_size=64,
                        measure=False, out=out)  # fmt: skip
    cost(config)
    rows = list(csv.DictReader(out.read_text().splitlines()))
    assert [row["img_size"] for row in rows] == ["64x64", "64x64"]
    assert int(rows[1]["macs_by_part: MLP"]) == 2 * 8 * 65 * 24**2
    assert rows[1]["scores: top1"] == "0.75" and rows[0]["scores: top1"] == ""
    with pytest.raises(UserError, match=r"costs.csv exists.*--overwrite"):
        check(config)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"models": ()}, "No network is named"),
        ({"models": ("vit_tiny",), "out": "x.txt"}, "end in .json or .csv"),
        ({"models": ("vit_tiny",), "out": "no/such/x.csv"}, "no folder no/such"),
        ({"models": ("vit_tiny",), "measure": False, "threads": 2}, "--threads has no effect"),
        ({"models": ("vit_tiny",), "overwrite": True}, "--overwrite has no effect"),
    ],
)
def test_a_mistake_is_answered_before_torch(values, message):
    with pytest.raises(UserError, match=message):
        check(CostConfig(**values))
