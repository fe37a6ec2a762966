"""Classification: loss, prediction, scores."""

import pytest
import torch

from limbeck.errors import UserError
from limbeck.records import Batch, Tap
from limbeck.tasks.classification import Classification
from tests.fakes import FakeEncoder


def test_loss_is_cross_entropy_of_the_predictions():
    task = Classification(FakeEncoder())
    images, labels = torch.rand(4, 3, 8, 8), torch.tensor([0, 1, 2, 0])
    losses = task(Batch(images, images, labels, tuple("abcd"), torch.arange(4)))
    expected = torch.nn.functional.cross_entropy(task.predict(images), labels)
    torch.testing.assert_close(losses.total, expected)
    losses.total.backward()
    assert task.encoder.weight.grad is not None and task.encoder.head.weight.grad is not None


def test_labels_may_teach_the_class_head_alone_and_predictions_stay_the_mean():
    encoder = FakeEncoder(num_prefix_tokens=2, has_dist_head=True)
    images, labels = torch.rand(4, 3, 8, 8), torch.tensor([0, 1, 2, 0])
    one = Batch(images, images, labels, tuple("abcd"), torch.arange(4))
    kinds = ("logits", "class_logits")
    both, of_class = encoder(images, taps=tuple(map(Tap, kinds))).taps.values()
    for kind, logits in zip(kinds, (both, of_class), strict=True):
        task = Classification(encoder, Tap(kind))
        expected = torch.nn.functional.cross_entropy(logits, labels)
        torch.testing.assert_close(task(one).total, expected)
        torch.testing.assert_close(task.predict(images), both)
    with pytest.raises(UserError, match="needs 'class_logits' of the student, which offers only"):
        Classification(FakeEncoder(), Tap("class_logits"))


def test_scores_count_hits():
    logits = torch.tensor([[3.0, 2, 1, 0, -1, -2], [0, 1, 2, 3, 4, 5]])
    scores = Classification(FakeEncoder()).score(logits, torch.tensor([0, 1]))
    assert scores == {"top1": 0.5, "top5": 1.0}
    assert Classification(FakeEncoder()).score(logits, torch.tensor([5, 0]))["top5"] == 0.0


def test_an_encoder_without_classifier_is_refused():
    class Headless(FakeEncoder):
        def offered_taps(self):
            return ("tokens",)

    with pytest.raises(UserError, match="logits"):
        Classification(Headless())
