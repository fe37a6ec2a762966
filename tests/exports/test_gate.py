"""The gate's arithmetic on arrays: what differs by how much, which images, which part first."""

import numpy as np
import pytest

from limbeck.errors import RunError
from limbeck.exports.gate import TOLERANCES, Comparison, Tolerance, summary

FP32 = TOLERANCES["fp32"]


def answers(**arrays):
    return {name: np.asarray(value) for name, value in arrays.items()}


def test_differences_and_agreement_by_output():
    expected = answers(logits=np.array([[3.0, 4.0], [0.0, 2.0]], np.float32))
    found = answers(logits=np.array([[3.0, 4.0], [3.0, 2.0]], np.float32))
    comparison = Comparison()
    comparison.add(["a", "b"], expected, found)
    told = comparison.plain()["logits"]
    assert told == {"largest": 3.0, "mean": 0.75, "relative": 1.5, "agreement": 0.5}
    assert comparison.worst() == ["b", "a"]
    first, second = comparison.failures(FP32)
    assert first == "'logits' differs by 1.5 of its norm (tolerance 0.001)"
    assert second.startswith("50 % of the classes of 'logits' are the same")
    (line,) = summary(comparison.plain())
    assert "largest difference 3, mean 0.75" in line and "50 % of the classes the same" in line


def test_masks_are_compared_pixel_by_pixel():
    expected = answers(mask=np.zeros((2, 4, 5), np.uint8))
    found = answers(mask=np.zeros((2, 4, 5), np.uint8))
    found["mask"][1, 0] = 1
    comparison = Comparison()
    comparison.add(["a", "b"], expected, found)
    assert comparison.plain() == {"mask": {"agreement": pytest.approx(0.875)}}
    assert comparison.worst()[0] == "b"
    assert len(comparison.failures(FP32)) == 1
    assert comparison.failures(Tolerance(1e-3, 0.8)) == []


def test_batches_add_up_and_the_same_passes():
    comparison = Comparison()
    for key in "abc":
        tokens = np.random.default_rng(0).random((1, 5, 4), np.float32)
        comparison.add([key], answers(tokens=tokens), answers(tokens=tokens * (1 + 1e-6)))
    assert comparison.keys == ["a", "b", "c"]
    assert comparison.failures(FP32) == []
    assert comparison.first(FP32) is None


def test_the_first_part_that_differs_is_the_first_computed():
    same, other = np.ones((1, 4)), np.ones((1, 4)) + 1
    comparison = Comparison()
    comparison.add(
        ["a"],
        {"block 0": same, "block 1": same, "tokens": same},
        {"block 0": same, "block 1": other, "tokens": other},
    )
    assert comparison.first(FP32) == "block 1"


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_never_passes(bad):
    comparison = Comparison()
    comparison.add(["a"], answers(tokens=[[1.0, 2.0]]), answers(tokens=[[1.0, bad]]))
    assert comparison.failures(Tolerance(1e6, 0))
    assert comparison.worst() == ["a"]


def test_a_reference_that_is_not_finite_is_named():
    bad = answers(tokens=[[1.0, 2.0], [1.0, np.nan]])
    with pytest.raises(RunError, match="in PyTorch, answers b with values in 'tokens' that are"):
        Comparison().add(["a", "b"], bad, bad)


def test_another_shape_is_refused():
    with pytest.raises(RunError, match=r"'tokens' is \[1, 3\], and that of PyTorch \[1, 2\]"):
        Comparison().add(["a"], answers(tokens=[[1.0, 2]]), answers(tokens=[[1.0, 2, 3]]))


def test_boxes_are_looked_for_whatever_their_order():
    boxes = np.array([[[0.0, 0, 10, 10], [20, 20, 40, 40]]])
    expected = answers(boxes=boxes, scores=np.array([[0.9, 0.8]]), classes=np.array([[1, 2]]))
    found = answers(
        boxes=boxes[:, ::-1] + 0.5, scores=np.array([[0.9, 0.8]]), classes=np.array([[2, 1]])
    )
    comparison = Comparison()
    comparison.add(["a"], expected, found)
    told = comparison.plain()
    assert told["boxes"] == {"agreement": 1} and told["scores"]["largest"] == 0
    assert "classes" not in told and comparison.failures(FP32) == []
    found["classes"] = np.array([[1, 1]])
    comparison = Comparison()
    comparison.add(["a"], expected, found)
    (said,) = comparison.failures(FP32)
    # By their scores: of 0.9 and 0.8 the surer one is there.
    assert said.startswith("52.94 % of the boxes of 'boxes' are the same")
    assert "  boxes: 52.94 % of the boxes the same" in summary(comparison.plain())


def test_boxes_that_nobody_would_take_are_not_looked_for():
    boxes = np.array([[[0.0, 0, 10, 10], [20, 20, 40, 40]]] * 2)
    scores, classes = np.array([[0.9, 0.05], [0.05, 0.04]]), np.array([[0, 0]] * 2)
    expected = answers(boxes=boxes, scores=scores, classes=classes)
    found = answers(boxes=boxes[:, [0, 0]], scores=scores, classes=classes)
    found["boxes"][1] += 100
    comparison = Comparison()
    comparison.add(["a", "b"], expected, found)
    assert comparison.plain()["boxes"] == {"agreement": 1}
