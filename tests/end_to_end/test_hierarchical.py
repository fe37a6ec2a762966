"""Hiera and Swin through the verbs: pre-trained, distilled, fine-tuned, evaluated, read back."""

import json
import re

import pytest

import limbeck
from limbeck.cli import main
from tests.end_to_end.commands import data_words, train_words
from tests.recipes.runs import snapshot

HIERA = ["--student", "hiera_46", "--student.img-size=64", "--student.embed-dim=4"]
SWIN = ["--student", "swin_48", "--student.img-size=64", "--student.embed-dim=12"]
SMALL = ["--student.mlp-ratio=1", "--train.epochs=1"]


def run(*words):
    main([str(word) for word in words])


def test_a_hiera_from_masked_pixels_to_a_classifier(images, tmp_path, capsys):
    out, classifier, scores = tmp_path / "run", tmp_path / "classifier", tmp_path / "scores"
    words = [*train_words(images, out), *HIERA, *SMALL, "--method", "masked-pixel"]
    words += ["--masked-pixel.mask-ratio", "0.4", "--masked-pixel.decoder-embed-dim", "32"]
    run("doctor", *words)
    assert capsys.readouterr().out.endswith("Ready.\n")
    run("distill", *words)
    student = limbeck.load(out)
    assert student.facts.grid == (4, 4) and student.facts.mask_grid == (2, 2)
    record = json.loads((out / "student.json").read_text())
    # The norm of the classifier-to-be is all that pre-training does not reach.
    assert record["untrained"]["parameters"] == ["head.norm.weight", "head.norm.bias"]
    assert record["positions"] == "learned"
    before = snapshot(out)
    run("distill", *words)
    assert snapshot(out) == before
    run("inspect", out)
    assert "12 blocks, width 32" in capsys.readouterr().out

    run("finetune", *train_words(images, classifier), "--train.epochs=1", "--student", out,
        "--drop-path-rate=0.1", "--mix.cutmix-alpha=0")  # fmt: skip
    tuned = limbeck.load(classifier)
    assert tuned.facts.grid == (2, 2) and tuned.facts.num_classes == 3
    run("evaluate", *data_words(images), "--student", classifier, "--baseline", out,
        "--out", scores, "--no-measure-speed")  # fmt: skip
    assert "| student " in capsys.readouterr().out


def test_a_swin_learns_from_a_hiera_and_classifies(images, tmp_path):
    teacher, out, classifier = tmp_path / "teacher", tmp_path / "run", tmp_path / "classifier"
    words = [*SWIN, *SMALL]
    run("finetune", *train_words(images, teacher), "--student", "hiera_46", "--img-size=64",
        "--train.epochs=0.5")  # fmt: skip
    run("distill", *train_words(images, out), *words, "--method", "feature", "--teacher", teacher,
        "--feature.target=output", "--feature.drop-path-rate=0")  # fmt: skip
    student = limbeck.load(out)
    assert student.facts.grid == (2, 2) and student.facts.num_heads[-1] == 24
    run("finetune", *train_words(images, classifier), "--train.epochs=1", "--student", out)
    assert limbeck.load(classifier).facts.num_classes == 3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--student.depth=3"], "'hiera_46' is built of stages, so depth can't be set"),
        (["--student.num-heads=3"], "so num_heads can't be set"),
        (["--student.img-size=60"], "mask units of hiera_tiny_224; .* a multiple of 32"),
        (["--student", "vit_tiny", "--student.q-pool=2"], "q_pool is for a Hiera"),
        (["--student", "swin_48"], "can't leave patches out"),
    ],
)
def test_what_can_not_be_is_refused(images, tmp_path, capsys, words, message):
    with pytest.raises(SystemExit):
        run("distill", *train_words(images, tmp_path / "run"), "--student", "hiera_46", *words,
            "--method", "masked-pixel")  # fmt: skip

    assert re.search(message, capsys.readouterr().err)
