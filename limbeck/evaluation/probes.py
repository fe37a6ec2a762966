"""The probes of one encoder: full ones for a report, quick ones for the log of a training run."""

from collections.abc import Sequence

import torch
from torch import Tensor

from limbeck.errors import RunError, UserError
from limbeck.evaluation.embed import Embeddings
from limbeck.evaluation.knn import knn
from limbeck.evaluation.linear import LinearProbe, few_label_probes, linear_probe
from limbeck.evaluation.neighbours import agreement
from limbeck.evaluation.scores import Score, is_in_top, score_of

QUICK_L2 = 1e-2  # between the strengths that few and many labels choose from the grid
QUICK_ITERATIONS = 30  # top-1 has settled; the last digits of the weights have not


def probe_scores(
    train: Embeddings,
    test: Embeddings,
    *,
    num_labels: Sequence[int] = (1, 5, 20),
    seeds: int = 5,
    k: int = 20,
    device: torch.device | str = "cpu",
    linear: LinearProbe | None = None,
) -> dict[str, Score]:
    """Scores by name of labelled embeddings.

    "knn_top1", "linear_top1" with all training labels; "few_N_top1" with N labels per class, mean
    of ``seeds`` draws; "top1" of the encoder's own classifier, where it has as many classes as the
    labels: logits of a foreign label set say nothing. "knn_top5", "linear_top5" and "top5" as well
    with more than five classes. ``linear``: what ``fit_linear`` gave for the same, if it is there.
    Raises UserError for unlabelled data.
    """
    train_labels, test_labels, num_classes = _labels_of(train, test)
    probe = linear or fit_linear(train, test, device)
    train, test = train.to(device), test.to(device)
    train_labels, test_labels = train_labels.to(device), test_labels.to(device)
    votes, k = knn(train.features, train_labels, test.features, num_classes=num_classes, k=k)
    classifiers = {
        "knn_": (votes, f"kNN, k = {k}, of {len(train):,} labelled images"),
        "linear_": (
            probe.logits(test.features),
            f"linear probe on {len(train):,} labelled images (l2 {probe.l2:g})",
        ),
    }
    if test.logits is not None and test.logits.shape[1] == num_classes:
        classifiers[""] = (test.logits, "the model's own classifier")
    scores = {}
    for name, (logits, how) in classifiers.items():
        for top in (1, 5) if num_classes > 5 else (1,):
            is_right = is_in_top(logits, test_labels, top)
            scores[f"{name}top{top}"] = score_of(is_right, f"top-{top} of {how}")
    fewest = int(train_labels.bincount(minlength=num_classes).min())
    for count in num_labels:
        probes = few_label_probes(
            train.features, train_labels, num_classes=num_classes, num_labels=count, num_draws=seeds
        )
        of_draw = [is_in_top(few.logits(test.features), test_labels) for few in probes]
        scores[f"few_{count}_top1"] = score_of(
            torch.stack(of_draw),
            f"top-1 of linear probes on {'up to ' if count > fewest else ''}{count} "
            f"labelled images per class, {seeds} draws",
        )
    return scores


def fit_linear(
    train: Embeddings, test: Embeddings, device: torch.device | str = "cpu"
) -> LinearProbe:
    """The linear probe on all of ``train``, of the classes of both; raises as ``probe_scores``."""
    labels, _, num_classes = _labels_of(train, test)
    features = train.features.to(device)
    return linear_probe(features, labels.to(device), num_classes=num_classes)


def quick_probe(train: Embeddings, test: Embeddings) -> dict[str, float]:
    """Top-1 (0..1) by name, in about a second for 2,000 images: one fixed L2 strength."""
    train_labels, test_labels, num_classes = _labels_of(train, test)
    votes, _ = knn(train.features, train_labels, test.features, num_classes=num_classes)
    probe = linear_probe(
        train.features,
        train_labels,
        num_classes=num_classes,
        l2=QUICK_L2,
        max_iter=QUICK_ITERATIONS,
    )
    return {
        "knn_top1": float(is_in_top(votes, test_labels).float().mean()),
        "linear_top1": float(is_in_top(probe.logits(test.features), test_labels).float().mean()),
    }


def quick_agreement(student: Embeddings, teacher: Embeddings) -> dict[str, float]:
    """Agreement (0..1) by name of embeddings of the same images, for unlabelled data."""
    if student.keys != teacher.keys:
        raise RunError(
            "Student and teacher could not be shown the same images: some became unreadable "
            "in between; check that the images stay in place."
        )
    found = agreement(student.features, teacher.features)
    return {"neighbours": found.neighbours.mean, "cka": found.cka}


def _labels_of(train: Embeddings, test: Embeddings) -> tuple[Tensor, Tensor, int]:
    if train.labels is None or test.labels is None:
        raise UserError(
            "These images have no labels, which kNN and linear probes need; sort them into class "
            "folders, or compare neighbours with a teacher instead."
        )
    if not len(train) or not len(test):
        raise UserError("A probe needs images to learn from and others to test; hold out more.")
    num_classes = 1 + int(max(train.labels.max(), test.labels.max()))
    return train.labels, test.labels, num_classes
