"""Fronts and their picture."""

import pytest
from PIL import Image

from limbeck.evaluation.pareto import draw_costs, draw_pareto, pareto_front


def test_the_front_has_what_nothing_beats():
    points = [(3, 0.9), (1, 0.5), (2, 0.5), (2, 0.7), (4, 0.9), (1, 0.4)]
    assert pareto_front(points) == [1, 3, 0]
    assert pareto_front([]) == []


@pytest.mark.parametrize("limits", [{"latency_ms": 5.0}, {"params": 2e6}, {}])
def test_the_picture_is_drawn(tmp_path, limits):
    candidates = [
        {"name": name, "round": number, "score": score,
         "costs": {"latency_ms": 10 - 2.0 * number, "params": 4e6 / (1 + number)}}
        for name, number, score in [
            ("seed", 0, 0.8), ("a", 1, 0.78), ("b", 1, None), ("c", 2, 0.75), ("d", 2, 0.74)]
    ]  # fmt: skip
    found = {"candidates": candidates, "winner": "c", "baseline": "d", "limits": limits}
    paths = draw_pareto(tmp_path / "pareto", found, "top-1")
    assert [path.suffix for path in paths] == [".png", ".svg"]
    with Image.open(paths[0]) as image:
        assert image.size[0] > 900
    text = paths[1].read_text()
    for label in ("seed", "winner", "width alone", "round 1", "latency (ms)", "top-1 (%)"):
        assert label in text
    assert ("limit" in text) == bool(limits)


@pytest.mark.parametrize(
    ("scores", "ms", "labels"),
    [
        ((), True, ["parameters (millions)", "GMACs", "latency (ONNX Runtime, ms)"]),
        ((0.7,), False, ["parameters (millions)", "GMACs"]),
        ((0.7, 0.8), True, ["latency (ONNX Runtime, ms)", "top1 (%)"]),
    ],
)
def test_costs_are_drawn_by_what_is_known(tmp_path, scores, ms, labels):
    rows = [
        {"name": f"net {i}", "parameters": 1e6 * (i + 1), "macs": 2e9 / (i + 1), "scores": {},
         "latency_ms": {"torch": 9.0, "onnx": 5.0 - i} if ms else {}}
        for i in range(3)
    ]  # fmt: skip
    for row, score in zip(rows, scores, strict=False):
        row["scores"]["top1"] = score
    titles = {"onnx": "ONNX Runtime", "torch": "PyTorch"}
    paths = draw_costs(tmp_path / "costs.json", rows, ("top1", "miou"), titles)
    text = paths[1].read_text()
    assert paths[0].name == "costs.png" and all(label in text for label in labels)
    assert ("net 2" in text) == (len(scores) < 2) and "net 1" in text
    assert "top1" not in text or len(scores) == 2
