"""What candidates are scored by: labels, the live teacher, the store, or probes."""

from dataclasses import replace

import pytest
import torch

from limbeck.data.options import StoreOptions, TargetsOptions
from limbeck.errors import UserError
from limbeck.models.finished import load_student
from limbeck.models.options import StudentOptions, TeacherOptions
from limbeck.recipes.run.images import open_images
from limbeck.recipes.study.options import LimitOptions, training
from limbeck.recipes.study.search import search
from limbeck.recipes.study.search_scores import Scorer
from limbeck.recipes.targets.reading import open_networks
from limbeck.recipes.targets.store_targets import StoreTargetsConfig, store_targets
from tests.recipes.searches import search_config

CPU = torch.device("cpu")
TINY_SEED = StudentOptions(
    name="tiny_vit_5m:img_size=32:embed_dims=16-32-32-48:depths=1-1-1-1:head_dim=16:mlp_ratio=2"
    ":mbconv_expand_ratio=2"
)


def sparse_config(images, out, classifier, /, **changes):
    """A search that trains by a teacher's class probabilities."""
    config = search_config(images, out, classifier, method="sparse-logit")
    return replace(config, relation=type(config)().relation, **changes)


@pytest.fixture(scope="module")
def store_of(classifier, tmp_path_factory):
    """A store of two views of each image, for the tiny seed, of the images that are named."""

    def make(images):
        config = sparse_config(images, tmp_path_factory.mktemp("out"), classifier)
        out = tmp_path_factory.mktemp("store") / "store"
        store_targets(
            StoreTargetsConfig(
                out=str(out),
                student=TINY_SEED,
                teacher=config.teacher,
                data=config.data,
                crop=config.crop,
                device="cpu",
                store=StoreOptions(num_views=2, top_k=2),
            )  # fmt: skip
        )
        return TargetsOptions(source=str(out))

    return make


def scorer_of(config):
    images = open_images(config.data)
    return Scorer(config, images, open_networks(training(config), CPU), CPU)


def test_labels_of_the_teachers_classes_give_top1(images, classifier, tmp_path):
    scorer = scorer_of(sparse_config(images, tmp_path, classifier))
    assert scorer.name == "top1"
    record = load_student(classifier).facts.origin["scores"]
    assert scorer.score(classifier) == pytest.approx(record["top1"])


def test_unlabelled_images_give_agreement_with_a_live_teacher(unlabelled, classifier, tmp_path):
    scorer = scorer_of(sparse_config(unlabelled, tmp_path, classifier))
    assert scorer.name == "agreement"
    assert scorer.score(classifier) == 1


def test_or_with_what_a_store_holds(unlabelled, classifier, store_of, tmp_path):
    config = sparse_config(
        unlabelled, tmp_path, classifier, teacher=TeacherOptions(), student=TINY_SEED,
        targets=store_of(unlabelled),
    )  # fmt: skip
    scorer = scorer_of(config)
    assert scorer.name == "agreement" and scorer.nets.live_teacher is None
    assert scorer.score(classifier) == 1  # the teacher itself, on the views that were stored
    # Other images of the same names: their answers are not in the store.
    data = replace(config.data, eval_root=str(unlabelled))
    with pytest.raises(UserError, match="no targets of the images of .*leave --data.eval-root out"):
        scorer_of(replace(config, data=data))


def test_other_classes_than_the_teachers_are_no_labels(images, classifier, tmp_path):
    other = tmp_path / "photos"
    other.mkdir()
    for folder in images.iterdir():
        (other / f"x{folder.name}").symlink_to(folder)
    assert scorer_of(sparse_config(other, tmp_path / "out", classifier)).name == "agreement"


def test_a_student_without_a_classifier_is_probed(images, unlabelled, teacher, tmp_path):
    assert scorer_of(search_config(images, tmp_path, teacher)).name == "linear_top1"
    assert scorer_of(search_config(unlabelled, tmp_path, teacher)).name == "neighbours"
    config = search_config(unlabelled, tmp_path, teacher)
    nets = open_networks(training(config), CPU)
    with pytest.raises(UserError, match="no candidate can be scored; pass --teacher"):
        Scorer(config, open_images(config.data), replace(nets, teacher=None), CPU)


def test_a_tiny_vit_is_contracted_from_stored_targets(images, classifier, store_of, tmp_path):
    config = sparse_config(
        images, tmp_path / "out", classifier, teacher=TeacherOptions(), targets=store_of(images),
        student=TINY_SEED, factors=("width", "mlp_ratio"), inherit=True,
        limits=LimitOptions(params="85%"),
    )  # fmt: skip
    found = search(config)
    assert found.score_name == "top1"
    assert len(found.outcome.candidates) == 3
    assert load_student(found.winner_dir).facts.num_classes == 3
