"""Further test sets: who is asked among which classes, ReaL's labels, and what is refused."""

import json
import shutil

import pytest
import torch

from limbeck.data.options import DataOptions
from limbeck.errors import UserError
from limbeck.evaluation.embed import Embeddings
from limbeck.evaluation.linear import LinearProbe
from limbeck.models.imagenet import imagenet_ids
from limbeck.recipes.look.evaluate import evaluate
from limbeck.recipes.look.shifted import Shifted, open_shifted, shifted_scores
from limbeck.recipes.run.images import open_images
from tests.data.images import write_photos
from tests.fakes import FakeEncoder
from tests.recipes.look.test_evaluate import config_of
from tests.recipes.runs import draw_classes


@pytest.fixture
def some(tmp_path):
    """New images of two of the three classes."""
    root = draw_classes(tmp_path / "some", num_per_class=4)
    shutil.rmtree(root / "green")
    return root


def test_a_set_of_some_classes_is_asked_among_them(images, classifier, some):
    config = config_of(images, classifier, num_labels=(), test_on=(f"rain={some}",))
    found = evaluate(config)
    scores = found.rows[0].scores
    assert scores["rain_top1"].num_test == scores["rain_linear_top1"].num_test == 8
    assert scores["rain_top1"].mean == 1 and "2 classes of rain" in scores["rain_top1"].how
    untrained = found.rows[1].scores
    assert "rain_linear_top1" in untrained and "rain_top1" not in untrained
    assert set(found.verdicts) >= {"rain_linear_top1"} and found.deciding == "linear_top1"


def test_among_few_classes_no_other_is_an_answer():
    # The network takes everything for its class 3; of 1 and 2 it likes 2 more.
    source = type("Two", (), {"classes": ("owl", "dog")})()
    said = Embeddings(
        torch.zeros(4, 2), torch.tensor([1, 1, 0, 1]), tuple("abcd"),
        torch.tensor([[0.0, 1.0, 2.0, 3.0]]).expand(4, 4),
    )  # fmt: skip
    encoder = FakeEncoder(num_classes=4, origin={"classes": ["cat", "dog", "owl", "yak"]})
    probe = LinearProbe(torch.zeros(3, 2), torch.tensor([5.0, 1.0, 0.0]), 1.0)
    shifted = Shifted({"few": source}, ("cat", "dog", "owl"))
    found = shifted_scores(shifted, encoder, said, probe, lambda *_: said, [])
    assert found["few_top1"].mean == 0.25  # owl, of which there is one
    assert found["few_linear_top1"].mean == 0.75  # dog, though the probe likes cats more


def test_classes_that_nobody_knows_are_told_once(images, classifier, tmp_path):
    root = tmp_path / "other"
    write_photos(root, ["zebra/1.png", "mango/1.png"])
    found = evaluate(config_of(images, classifier, num_labels=(), test_on=(f"odd={root}",)))
    told = "odd: its classes are not among those of the images or of the network."
    assert found.notes.count(told) == 1
    assert not any(name.startswith("odd") for row in found.rows for name in row.scores)


def test_real_labels():
    real = ((3, 4), (), (0,), (2,))
    keys = tuple(f"val/ILSVRC2012_val_0000000{number}.JPEG" for number in (1, 2, 3, 4))
    logits = torch.eye(1000)[[4, 4, 4, 2]]
    usual = Embeddings(torch.eye(4), torch.zeros(4).long(), keys, logits)
    encoder = FakeEncoder(num_classes=1000, origin={"classes": imagenet_ids()})
    probe = LinearProbe(torch.eye(1000)[:, :4], torch.zeros(1000), 1.0)  # says 0, 1, 2, 3
    shifted = Shifted({}, tuple(imagenet_ids()), real)
    found = shifted_scores(shifted, encoder, usual, probe, lambda *_: usual, [])
    assert {name: score.mean for name, score in found.items()} == {
        "real_top1": pytest.approx(2 / 3),
        "real_linear_top1": 0,
    }
    assert found["real_top1"].num_test == 3
    other = Embeddings(usual.features, usual.labels, ("a.png", *keys[1:]), logits)
    with pytest.raises(UserError, match="a.png is no image of ImageNet's validation set"):
        shifted_scores(shifted, encoder, other, probe, lambda *_: other, [])


@pytest.mark.parametrize(
    ("test_on", "told"),
    [
        (("photos/rain",), "say NAME=FOLDER"),
        (("Rain 1=photos",), "small letters, numbers and hyphens"),
        (("rain=",), "say NAME=FOLDER"),
        (("rain={root}", "rain={root}"), "names rain twice"),
        (("rain={unlabelled}",), "has no labels to score by"),
    ],
)
def test_what_is_no_set(images, unlabelled, test_on, told):
    test_on = tuple(text.format(root=images, unlabelled=unlabelled) for text in test_on)
    config = config_of(images, "x", test_on=test_on)
    with pytest.raises(UserError, match=told):
        open_shifted(config, open_images(config.data))


def test_unlabelled_images_and_others_than_imagenet(images, unlabelled, tmp_path):
    config = config_of(unlabelled, "x", test_on=(f"rain={images}",))
    with pytest.raises(UserError, match="Further test sets need labelled images"):
        open_shifted(config, open_images(config.data))
    file = tmp_path / "real.json"
    file.write_text(json.dumps([[1]]))
    config = config_of(images, "x", real_labels=file)
    with pytest.raises(UserError, match="are of ImageNet's validation images; leave the option"):
        open_shifted(config, open_images(DataOptions(root=str(images), holdout_ratio=0.25)))
