"""Probes of a run: which ones, on what images, and none where nothing can be measured."""

from dataclasses import replace

import pytest
import torch

import limbeck
from limbeck.data.options import DataOptions
from limbeck.data.skipped import SkippedLog
from limbeck.errors import NotFiniteError, UserError
from limbeck.methods.teacher import Teacher
from limbeck.models.heads import with_classifier
from limbeck.recipes.run.images import open_images
from limbeck.recipes.run.options import CropEvalOptions, ProbeOptions
from limbeck.recipes.run.probes import build_probe, embed_source, spread_slice, task_probe
from limbeck.tasks.classification import Classification

CPU = torch.device("cpu")


def probe_of(root, student, teacher=None, *, options=None, **data):
    data = DataOptions(root=str(root), num_workers=0, **{"holdout_ratio": 0.25} | data)
    images = open_images(data)
    skipped = SkippedLog(None, len(images.train), data.max_bad_ratio)
    return build_probe(options or ProbeOptions(), images, student, teacher, data, CPU, skipped)


@pytest.fixture
def network(student):
    return limbeck.load(student)


@pytest.fixture
def big(teacher):
    return Teacher(limbeck.load(teacher), CPU, "bf16")


def test_labels_give_knn_and_linear(images, network):
    scores = probe_of(images, network)(network, 1)
    assert list(scores) == ["knn_top1", "linear_top1"]
    assert all(score > 0.8 for score in scores.values())  # colours are easy; chance is 1/3


def test_no_labels_give_the_teacher_s_neighbours(unlabelled, network, big):
    scores = probe_of(unlabelled, network, big)(network, 1)
    assert list(scores) == ["neighbours", "cka"]
    assert all(0 <= score <= 1 for score in scores.values())


def test_the_teacher_agrees_with_itself(unlabelled, teacher):
    encoder = limbeck.load(teacher)
    scores = probe_of(unlabelled, encoder, Teacher(limbeck.load(teacher), CPU, "fp32"))(encoder, 1)
    assert scores["neighbours"] == 1
    assert scores["cka"] == pytest.approx(1, abs=1e-5)


def test_a_segmenter_has_no_neighbours(unlabelled, network, segmenter):
    assert probe_of(unlabelled, network, Teacher(limbeck.load(segmenter), CPU)) is None


def test_nothing_to_measure(images, unlabelled, network, big):
    assert probe_of(unlabelled, network) is None  # neither labels nor teacher
    assert probe_of(images, network, holdout_ratio=0) is None
    assert probe_of(unlabelled, network, big, holdout_ratio=0.5, max_holdout=2) is None


def test_the_fewest_images_that_can_be_measured(images, unlabelled, network, big):
    few = probe_of(unlabelled, network, big, holdout_ratio=0.5, max_holdout=3)(network, 1)
    assert 0 <= few["neighbours"] <= 1
    one = probe_of(images, network, holdout_ratio=0.5, max_holdout=1)(network, 1)
    assert one["knn_top1"] in (0, 1)


def test_numbers_of_images_are_limited(images, network):
    test = open_images(DataOptions(root=str(images), holdout_ratio=0.25)).holdout
    share = [test.label(index) for index in range(len(test))].count(0) / len(test)
    # Who has seen a single image, a blue one, calls all images blue.
    scores = probe_of(images, network, options=ProbeOptions(num_train=1))(network, 1)
    assert scores["knn_top1"] == pytest.approx(share)
    scores = probe_of(images, network, options=ProbeOptions(num_test=1))(network, 1)
    assert scores["knn_top1"] in (0, 1)


def test_a_slice_is_spread_over_the_classes(images):
    source = open_images(DataOptions(root=str(images), holdout_ratio=0)).train
    few = spread_slice(source, 6)
    assert [few.label(index) for index in range(6)] == [0, 0, 1, 1, 2, 2]
    assert spread_slice(source, 100) is source


def test_embeddings_are_in_the_source_s_order(images, network):
    data = DataOptions(root=str(images), holdout_ratio=0, num_workers=0)
    source = open_images(data).train
    skipped = SkippedLog(None, len(source), 0.0)
    all_at_once = embed_source(network, source, ProbeOptions(), data, CPU, skipped)
    in_parts = embed_source(
        network, source, replace(ProbeOptions(), batch_size=5), data, CPU, skipped
    )
    assert list(all_at_once.keys) == [source.key(index) for index in range(len(source))]
    # Another batch size may choose another matrix kernel.
    torch.testing.assert_close(all_at_once.features, in_parts.features, atol=1e-5, rtol=1e-4)
    cls = embed_source(network, source, replace(ProbeOptions(), pool="cls"), data, CPU, skipped)
    assert cls.features.shape == (48, 24)
    assert not torch.allclose(cls.features, all_at_once.features)


def test_a_task_is_scored_by_finite_answers_to_what_can_be_read(images, network, tmp_path):
    task = Classification(with_classifier(network, 3, None, 0))
    data = DataOptions(root=str(images), num_workers=0, holdout_ratio=0.25, max_bad_ratio=1.0)
    opened = open_images(data)
    skipped = SkippedLog(None, opened.num_images, data.max_bad_ratio)

    def score(source):
        return task_probe(task, source, CropEvalOptions(), data, CPU, skipped)(task, 1)

    assert score(opened.holdout).keys() == {"top1", "top5"}
    for name in ("blue", "red"):
        (tmp_path / name).mkdir()
        for index in range(4):
            (tmp_path / name / f"{index}.png").write_bytes(b"no image")
    broken = open_images(replace(data, root=str(tmp_path), holdout_ratio=0.5)).holdout
    with pytest.raises(UserError, match="No held-out image can be read"):
        score(broken)
    with torch.no_grad():
        next(task.parameters()).fill_(torch.nan)
    with pytest.raises(NotFiniteError, match="not finite"):
        score(opened.holdout)
