"""The set of probes: names, known cases, speed, and data that can't be probed."""

import pytest
import torch

from limbeck.errors import RunError, UserError
from limbeck.evaluation import linear
from limbeck.evaluation.embed import Embeddings
from limbeck.evaluation.probes import (
    QUICK_ITERATIONS,
    probe_scores,
    quick_agreement,
    quick_probe,
)


def embeddings(num, *, num_classes=10, noise=0.1, dim=16, logits=False, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(num) % num_classes
    centres = torch.randn(num_classes, dim, generator=torch.Generator().manual_seed(99))
    features = centres[labels] + noise * torch.randn(num, dim, generator=generator)
    return Embeddings(
        features=features,
        labels=labels,
        keys=tuple(str(i) for i in range(num)),
        logits=torch.eye(num_classes)[labels] if logits else None,
    )


def test_all_scores_of_an_easy_set_are_perfect():
    scores = probe_scores(
        embeddings(300), embeddings(100, logits=True, seed=1), num_labels=(1, 5), seeds=3
    )
    assert list(scores) == [
        "knn_top1", "knn_top5", "linear_top1", "linear_top5", "top1", "top5",
        "few_1_top1", "few_5_top1",
    ]  # fmt: skip
    assert all(score.mean == 1 and score.low < 1 for score in scores.values())
    assert scores["knn_top1"].how == "top-1 of kNN, k = 20, of 300 labelled images"
    assert scores["few_5_top1"].spread == 0 and "3 draws" in scores["few_5_top1"].how


def test_random_labels_are_chance():
    train, test = embeddings(1000, noise=100), embeddings(1000, noise=100, seed=1)
    scores = probe_scores(train, test, num_labels=(5,))
    assert all(scores[name].low < 0.1 < scores[name].high for name in ("knn_top1", "linear_top1"))
    assert 0.05 < scores["few_5_top1"].mean < 0.15


def test_more_labels_are_better():
    train, test = embeddings(1000, noise=1.0), embeddings(500, noise=1.0, seed=1)
    scores = probe_scores(train, test)
    few = [scores[f"few_{n}_top1"].mean for n in (1, 5, 20)]
    assert few == sorted(few) and few[-1] < scores["linear_top1"].mean
    assert scores["few_1_top1"].spread > 0


def test_five_classes_have_no_top5_and_few_neighbours_are_said():
    scores = probe_scores(
        embeddings(12, num_classes=5), embeddings(10, num_classes=5, seed=1), num_labels=()
    )
    assert list(scores) == ["knn_top1", "linear_top1"]
    assert "k = 12" in scores["knn_top1"].how


@pytest.mark.parametrize("num_classes", [3, 1000])
def test_logits_of_other_classes_are_left_out(num_classes):
    test = embeddings(100, seed=1)
    logits = torch.rand(100, num_classes)
    other = Embeddings(test.features, test.labels, test.keys, logits)
    assert "top1" not in probe_scores(embeddings(100), other, num_labels=())


def test_a_class_without_training_images_counts_as_wrong():
    train = embeddings(90, num_classes=9)
    test = embeddings(100, num_classes=10, seed=1)
    scores = probe_scores(train, test, num_labels=(5,))
    assert scores["linear_top1"].mean <= 0.9
    assert "on up to 5 labelled images per class" in scores["few_5_top1"].how


def test_quick_probe_agrees_with_the_full_one_and_is_quick(monkeypatch):
    train = embeddings(2000, noise=4.0, dim=192)
    test = embeddings(2000, noise=4.0, dim=192, seed=1)
    limits, fit = [], linear.fit_logistic

    def counted(*args, max_iter, **kwargs):
        limits.append(max_iter)
        return fit(*args, max_iter=max_iter, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(linear, "fit_logistic", counted)
        quick = quick_probe(train, test)
    assert limits == [QUICK_ITERATIONS]  # one fit, and the strength is not searched
    full = probe_scores(train, test, num_labels=())
    assert quick["knn_top1"] == pytest.approx(full["knn_top1"].mean, abs=1e-6)
    assert quick["linear_top1"] == pytest.approx(full["linear_top1"].mean, abs=0.05)


def test_quick_agreement():
    student, teacher = embeddings(200), embeddings(200, seed=1)
    assert quick_agreement(student, student) == pytest.approx({"neighbours": 1, "cka": 1})
    found = quick_agreement(student, teacher)
    assert 10 / 199 < found["neighbours"] < 1 and 0.9 < found["cka"] < 1


def test_agreement_of_different_images_is_refused():
    with pytest.raises(RunError, match="same images"):
        quick_agreement(embeddings(20), embeddings(21))


def test_data_without_labels_is_refused():
    bare = embeddings(20)
    bare = Embeddings(bare.features, None, bare.keys)
    for probe in (probe_scores, quick_probe):
        with pytest.raises(UserError, match="no labels"):
            probe(bare, embeddings(20))
        with pytest.raises(UserError, match="no labels"):
            probe(embeddings(20), bare)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_gives_the_same_scores():
    train, test = embeddings(1000, noise=1.0), embeddings(500, noise=1.0, seed=1)
    cpu, gpu = probe_scores(train, test), probe_scores(train, test, device="cuda")
    # Another order of sums may move a few of the 500 images across a border.
    assert all(gpu[name].mean == pytest.approx(cpu[name].mean, abs=0.01) for name in cpu)
