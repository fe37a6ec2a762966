"""A small TinyViT through the verbs, and its fine-tuning as published."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file

import limbeck
from limbeck.cli import main
from limbeck.engine.log import Log
from limbeck.engine.loop import Interrupted
from limbeck.models.build import build_fresh
from limbeck.models.finished import save_student
from limbeck.models.heads import with_classifier
from limbeck.models.origins.layouts import IMAGENET_NORM
from tests.end_to_end.commands import data_words, train_words
from tests.recipes.runs import metrics_of, weights_of


def run(*words):
    main([str(word) for word in words])


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """A run's folder with a small one, fresh, of five old classes."""
    folder = tmp_path_factory.mktemp("start")
    for name, num_classes in (("encoder", 0), ("classifier", 5)):
        shape = {"img_size": 32, "embed_dims": [8, 16, 24], "depths": [1, 1, 2],
                 "num_heads": [1, 2, 4], "mlp_ratio": 2.0, "num_classes": num_classes}  # fmt: skip
        mean, std = IMAGENET_NORM
        architecture = {
            "kind": "timm", "name": "tiny_vit_5m_224", "kwargs": shape, "mean": mean, "std": std,
        }  # fmt: skip
        save_student(build_fresh(architecture, {}, seed=0), folder / name, {})
    return folder


def test_from_mask_tokens_over_relations_to_a_classifier(images, start, tmp_path):
    simmim, out, tuned = tmp_path / "simmim", tmp_path / "run", tmp_path / "tuned"
    weights = ["--student.weights", start / "encoder", "--train.epochs=1"]
    run("distill", *train_words(images, simmim), *weights, "--method=simmim",
        "--simmim.mask-patch-size=16")  # fmt: skip
    assert limbeck.load(simmim).mask_token.shape == (1, 1, 8)
    run("distill", *train_words(images, out), *weights, "--method=relation", "--teacher", simmim,
        "--relation.teacher-block=-1", "--relation.drop-path-rate=0")  # fmt: skip
    untrained = json.loads((out / "student.json").read_text())["untrained"]["parameters"]
    assert "stages.2.blocks.1.attn.attention_biases" in untrained
    assert not any(".blocks.0." in name or "downsample" in name for name in untrained)
    run("finetune", *train_words(images, tuned), "--train.epochs=2", "--student", out)
    assert limbeck.load(tuned).facts.num_classes == 3


def test_measured_looked_into_and_written_in_its_authors_layout(images, start, tmp_path, capsys):
    own = start / "encoder"
    run("evaluate", *data_words(images), "--student", own, "--no-measure-speed")
    run("analyze", own, *data_words(images), "--out", tmp_path / "an", "--device=cpu",
        "--parts", "similarity", "attention")  # fmt: skip
    assert (tmp_path / "an" / "analysis.md").is_file()
    run("convert", own, tmp_path / "own.pth", "--layout=tiny-vit")
    capsys.readouterr()
    run("inspect", tmp_path / "own.pth")
    said = capsys.readouterr().out
    assert "TinyViT as published by its authors" in said and "UNMATCHED" not in said


@pytest.mark.parametrize("method", ["feature", "attention-map"])
def test_as_student_and_teacher_of_other_methods(images, start, tmp_path, method):
    masks = ["--attention-map.masking=mask-token", "--attention-map.regression.mask-patch-size=16"]
    extra = masks if method == "attention-map" else []
    run("distill", *train_words(images, tmp_path / "run"), "--student.weights", start / "encoder",
        "--train.epochs=1", "--method", method, "--teacher", start / "encoder", *extra)  # fmt: skip
    assert len(metrics_of(tmp_path / "run")[0]) == 2


def tuning(images, out, student, *words):
    run("finetune", *train_words(images, out), "--preset=tiny_vit_22k_to_1k", "--student", student,
        "--optim.warmup-epochs=1", *words)  # fmt: skip


def test_the_published_fine_tuning(images, start, tmp_path):
    """Rows of the old classifier, fixed batch norm, layer decay; then on at a larger size."""
    index, out, larger = tmp_path / "index.txt", tmp_path / "run", tmp_path / "larger"
    index.write_text("3\n-1\n0\n")
    tuning(images, out, start / "classifier", "--head-index", index, "--optim.base-lr=1e-3")
    before = load_file(start / "classifier" / "student.safetensors")
    after = load_file(out / "student.safetensors")
    assert before.keys() == after.keys() and len(after["head.fc.bias"]) == 3
    for name, value in after.items():
        is_statistic = name.endswith(("running_mean", "running_var", "num_batches_tracked"))
        assert torch.equal(value, before[name]) == (is_statistic) or "head.fc" in name, name
    first, *_ = metrics_of(out)[0]
    assert first["lr"] == pytest.approx(1e-6)
    run("finetune", *train_words(images, larger), "--preset=tiny_vit_384", "--img-size=64",
        "--student", out, "--train.epochs=2", "--optim.warmup-epochs=1",
        "--optim.base-lr=1e-9")  # fmt: skip
    own = load_file(larger / "student.safetensors")
    torch.testing.assert_close(own["head.fc.weight"], after["head.fc.weight"], atol=1e-6, rtol=0)
    assert own["stages.2.blocks.0.attn.attention_biases"].shape == (4, 16)


def test_stopped_and_continued_ends_the_same(images, start, tmp_path, monkeypatch):
    """Statistics of batch norm are part of the checkpoint."""

    def words(out):
        return ["finetune", *train_words(images, out), "--student", start / "encoder",
                "--train.save-every=3", "--drop-path-rate=0.1"]  # fmt: skip

    run(*words(tmp_path / "whole"))
    add_step = Log.add_step

    def cut(self, now, **values):
        add_step(self, now, **values)
        if now == 5:
            raise Interrupted("lost", 9)

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(Log, "add_step", cut)
        run(*words(tmp_path / "part"))
    run(*words(tmp_path / "part"))
    assert weights_of(tmp_path / "part") == weights_of(tmp_path / "whole")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--head-index", "gone.txt"], "--head-index: .*gone.txt does not exist"),
        (["--keep-head"], "5 rows .* and 3 classes; each class needs one"),
        (["--keep-head", "--head-init-std=0"], "--head-init-std has no effect with --keep-head"),
        (["--keep-head", "--keep-blocks=1"], "--keep-head has no effect with --keep-blocks"),
        (["--keep-head", "--head-index", __file__], "exclude each other"),
        (["--student", "tiny_vit_5m", "--keep-head"], "no effect with tiny_vit_5m, .* scratch"),
        (["--student", "vit_tiny", "--freeze-batch-norm"], "has no batch norm"),
        (["--img-size=40"], "40 x 40 pixels do not divide .* a multiple of 16"),
    ],
)
def test_what_can_not_be_is_refused(images, start, tmp_path, capsys, words, message):
    with pytest.raises(SystemExit):
        run("finetune", *train_words(images, tmp_path / "run"), "--student",
            start / "classifier", *words)  # fmt: skip
    assert re.search(message, capsys.readouterr().err)


def test_classes_of_a_kept_head_must_be_the_same(images, start, tmp_path, capsys):
    model = with_classifier(limbeck.load(start / "encoder"), 3, None, seed=0)
    save_student(model, tmp_path / "old", {"classes": ["blue", "red", "green"]})
    with pytest.raises(SystemExit):
        run("finetune", *train_words(images, tmp_path / "run"), "--student", tmp_path / "old",
            "--keep-head")  # fmt: skip
    said = capsys.readouterr().err
    assert "Class 1 of the student is 'red' and that of the images 'green'" in said
