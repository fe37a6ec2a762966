"""Answers by class: against scikit-learn, and the table for people."""

import json

import pytest
import torch
from sklearn.metrics import confusion_matrix, precision_score, recall_score

from limbeck.evaluation.class_scores import class_result, class_table, joined

CLASSES = ("cat", "dog", "owl", "yak")


def answers(seed=0, count=60, num_classes=3):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(num_classes, (count,), generator=generator)
    return torch.randn(count, 4, generator=generator), labels


def test_it_is_scikit_learn():
    logits, labels = answers()
    found = class_result(logits, labels, CLASSES, "someone")
    predicted = logits.argmax(1)
    assert found.confusion.tolist() == confusion_matrix(labels, predicted, labels=range(4)).tolist()
    rows = found.rows()
    assert [row["class"] for row in rows] == ["cat", "dog", "owl"]  # there is no yak to score
    for name, score in (("recall", recall_score), ("precision", precision_score)):
        theirs = score(labels, predicted, labels=range(4), average=None, zero_division=0)
        assert [row[name] for row in rows] == pytest.approx(theirs[:3].tolist())
    json.dumps(found.plain(), allow_nan=False)


def test_what_a_class_is_taken_for():
    logits = torch.eye(4)[torch.tensor([0, 1, 1, 2, 2])]
    found = class_result(logits, torch.tensor([0, 0, 0, 2, 2]), CLASSES, "someone")
    cat, owl = found.rows()
    assert (cat["taken_for"], cat["times"], cat["recall"]) == ("dog", 2, 1 / 3)
    assert (owl["taken_for"], owl["times"], owl["precision"]) == (None, 0, 1)
    lines = class_table(found).splitlines()
    assert lines[0] == "Classes, someone:"
    assert lines[4] == "| cat   |      3 | 33.3     | 100.0       | dog (2)   |"
    nobody = class_result(logits[:1], torch.tensor([1]), CLASSES, "someone").rows()
    assert nobody[0]["precision"] is None


def test_runs_are_added_up():
    runs = [class_result(*answers(seed), CLASSES, "someone") for seed in (0, 1)]
    both = joined(runs)
    assert both.confusion.equal(runs[0].confusion + runs[1].confusion)
    assert both.calibration == pytest.approx((runs[0].calibration + runs[1].calibration) / 2)


def test_of_many_classes_the_hardest_are_shown():
    labels = torch.arange(30)
    logits = torch.eye(30)
    logits[7] = logits[8]
    found = class_result(logits, labels, [f"c{i}" for i in range(30)], "someone")
    lines = class_table(found).splitlines()
    assert lines[0] == "The 20 hardest of 30 classes, someone:"
    assert len(lines) == 24 and lines[4].startswith("| c7 ")
