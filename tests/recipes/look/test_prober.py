"""One network after the other on the same images, and what several runs say together."""

import torch

from limbeck.data.skipped import SkippedLog
from limbeck.models.origins.load import load_encoder
from limbeck.recipes.look.prober import Prober
from limbeck.recipes.run.images import open_images
from tests.recipes.look.test_evaluate import config_of


def test_classes_in_another_order_are_matched_by_name(images, classifier):
    config = config_of(images, classifier, num_labels=())
    opened = open_images(config.data)
    prober = Prober(config, opened, torch.device("cpu"), SkippedLog(None, 48, 0.0))
    usual = load_encoder(str(classifier))
    other = load_encoder(str(classifier))
    for parameter in (other.model.head.weight, other.model.head.bias):
        parameter.data = parameter.data[[2, 0, 1]]
    other.facts.origin["classes"] = ["red", "blue", "green"]
    right = [prober.scores(each)["top1"].per_image for each in (usual, other)]
    assert torch.equal(*right)


def test_runs_are_told_together_where_the_same_answers(images, classifier, student):
    config = config_of(images, classifier, num_labels=())
    prober = Prober(config, open_images(config.data), torch.device("cpu"), SkippedLog(None, 48, 0))
    own, bare = load_encoder(str(classifier)), load_encoder(str(student))
    for each in (own, bare):
        prober.scores(each)
    assert prober.classes_of([own, own]).confusion.equal(2 * prober.classes_of([own]).confusion)
    assert prober.classes_of([own]).how == "its own classifier"
    assert prober.classes_of([bare]).how == "linear probe"
    assert prober.classes_of([own, bare]) is None
    ranks = [prober.features_of([each])["rank"] for each in (own, bare)]
    assert prober.features_of([own, bare])["rank"] == sum(ranks) / 2
