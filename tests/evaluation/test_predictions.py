"""Predictions: the class of each image, right ones, and those that two networks share."""

import pytest
import torch

from limbeck.errors import NotFiniteError, RunError, UserError
from limbeck.evaluation.predictions import LOGITS, Predictions, predict, top_scores
from limbeck.records import Batch
from tests.fakes import FakeEncoder


def batches(labels=(0, 1)):
    generator = torch.Generator().manual_seed(0)
    for start in (0, 4):
        images = torch.rand(4, 3, 8, 8, generator=generator)
        keys = tuple(f"{start + i}" for i in range(4))
        known = None if labels is None else torch.tensor([*labels, *labels])
        yield Batch(images, images, known, keys, torch.zeros(4, dtype=torch.int64))


def test_classes_are_those_of_the_largest_logits():
    encoder = FakeEncoder()
    said = predict(encoder, batches())
    expected = [encoder(b.images, None, (LOGITS,)).taps[LOGITS].argmax(1) for b in batches()]
    assert said.classes.equal(torch.cat(expected)) and said.keys == tuple("01234567")
    assert said.top1() == pytest.approx(float((said.classes == said.labels).float().mean()))
    assert predict(encoder, batches(None)).labels is None


def test_agreement_is_by_key():
    one = Predictions(torch.tensor([0, 1, 2]), None, ("a", "b", "c"))
    assert one.agreement({"c": 2, "b": 0, "a": 0, "d": 1}) == pytest.approx(2 / 3)
    with pytest.raises(RunError, match="could not be shown c"):
        one.agreement({"a": 0, "b": 1})


def test_nothing_and_nonsense_are_told():
    with pytest.raises(UserError, match="no images to predict"):
        predict(FakeEncoder(), [])
    broken = FakeEncoder()
    broken.head.weight.data.fill_(float("nan"))
    with pytest.raises(NotFiniteError, match="not finite"):
        predict(broken, batches())


def test_top_scores_tell_every_image():
    encoder = FakeEncoder()
    said = predict(encoder, batches())
    found = top_scores(encoder, batches(), [0, 1, 2])
    assert found.keys() == {"top1"}  # of three classes five are all
    assert found["top1"].per_image.bool().equal(said.classes == said.labels)
    with pytest.raises(UserError, match="no images to predict"):
        top_scores(encoder, [], [0, 1, 2])
